"""Multi-head attention, and the one place where its implementation is chosen.

Shapes: B batch, H heads, Q queries, S keys, T tokens, K head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cpu_attention import chunked_attention
from .cpu_linear import linear
from .cpu_paths import why_not_fp32_attention, why_not_matmul_attention

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matmuls, the one implementation that returns its weights.

    Args:
        query: shape (batch, heads, queries, head size); `key` and `value` likewise with the number of keys.
        attention_mask: additive (float) or boolean (True: attend), broadcast to (batch, heads, queries, keys).
        scaling: factor of the scores before anything is added.
        dropout: rate for the weights, in [0, 1), applied if `module` is in training.
        position_bias: added to the scores, broadcast likewise.

    Returns:
        The output, shape (batch, queries, heads, head size), and the weights, shape (batch, heads, queries, keys).
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, H, Q, S)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights  # (B, Q, H, K), (B, H, Q, S)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    implementation: str,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot-product attention by the implementation that fits: the eager one when its weights are asked for,
    batched matmuls where they beat the fused kernel, else `implementation` from transformers' attention interface.

    Args:
        module: the attention layer; its `training` and `is_causal` are read.
        query: shape (batch, heads, queries, head size); `key` and `value` likewise with the number of keys.
        attention_mask: additive (float) or boolean (True: attend), broadcast to (batch, heads, queries, keys).
        implementation: `config._attn_implementation`, a name of the attention interface.
        dropout: rate for the attention weights, applied in training.
        position_bias: added to the scores, broadcast to (batch, heads, queries, keys).
        key_bias: added to all scores of a key, shape (batch, keys), without a gradient.
        output_attentions: return the weights.

    Returns:
        The output, shape (batch, queries, heads, head size), and the weights (batch, heads, queries, keys) or None.

    Raises:
        ValueError: if a flash implementation meets a position bias or a bias of the keys, which it would ignore.
    """
    dropout = dropout if module.training else 0.0
    scaling = query.shape[-1] ** -0.5
    # Without samples, sdpa_attention_forward fails on a reshape. For a learnt bias, torch records a kernel of another
    # layout in an exported graph than it takes when it lowers the graph.
    is_learnt = position_bias is not None or getattr(attention_mask, "requires_grad", False)  # flex's masks have none
    is_exported_bias = is_learnt and _is_exporting()
    if output_attentions or query.shape[0] == 0 or is_exported_bias:
        implementation = "eager"
    plain = attention_mask is None and position_bias is None and dropout == 0 and not module.is_causal
    if implementation == "sdpa" and plain and why_not_matmul_attention(query, key) is None:
        return chunked_attention(query, key, value, scaling, key_bias).transpose(1, 2), None
    if (position_bias is not None or key_bias is not None) and "flash" in implementation:
        raise ValueError(
            f"attn_implementation {implementation!r} knows no position bias, nor tokens of different sizes as merging "
            "makes them: use 'sdpa', 'flex_attention' or 'eager'"
        )
    if key_bias is not None:
        position_bias = _with_key_bias(position_bias, key_bias, query, implementation)
    if position_bias is not None and implementation == "flex_attention":
        position_bias = position_bias.expand(query.shape[0], -1, -1, -1)  # it looks up each sample's own
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    options = {"dropout": dropout, "scaling": scaling, **kwargs}
    if implementation == "sdpa" and position_bias is None and why_not_fp32_attention(query) is None:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        with torch.autocast("cpu", enabled=False):
            output, _ = function(module, query.float(), key.float(), value.float(), attention_mask, **options)
        return output.to(value.dtype), None
    bias = {} if position_bias is None else {"position_bias": position_bias}
    return function(module, query, key, value, attention_mask, **bias, **options)


def _with_key_bias(
    position_bias: torch.Tensor | None, key_bias: torch.Tensor, query: torch.Tensor, implementation: str
) -> torch.Tensor:
    bias = key_bias[:, None, None, :].to(query.dtype)  # (B, 1, 1, S)
    bias = bias if position_bias is None else position_bias + bias
    # Flex attention looks up each pair's own.
    return bias.expand(-1, query.shape[1], query.shape[2], -1) if implementation == "flex_attention" else bias


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (2104.09864) in the half-split layout.

    Args:
        states: shape (batch, heads, tokens, head size).
        cos, sin: shape (tokens, head size), (heads, tokens, head size) if the heads turn in ways of their own, or
            (batch, 1 or heads, tokens, head size) if the samples' positions differ.

    Returns:
        The turned states, of the same shape and type.
    """
    first, second = states.chunk(2, dim=-1)
    return states * cos.to(states.dtype) + torch.cat((-second, first), dim=-1) * sin.to(states.dtype)


class MultiHeadAttention(nn.Module):
    """Base of self-attention and cross-attention: heads, their norms, the output projection.

    Args:
        config: gives `hidden_size`, `attention_probs_dropout_prob`, `qk_norm`, `layer_norm_eps`, the attention
            implementation and, where heads have sizes of their own, `head_dims`, of queries and keys and of values.
        num_attention_heads: a divisor of `hidden_size`.
        layer_idx: index of the layer in the cache.
    """

    is_causal = False

    def __init__(self, config: Any, num_attention_heads: int, layer_idx: int | None = None):
        super().__init__()
        self.config = config
        self.num_attention_heads = num_attention_heads
        size = config.hidden_size // num_attention_heads
        self.head_dim, self.v_head_dim = getattr(config, "head_dims", (size, size))
        self.dropout = config.attention_probs_dropout_prob
        self.layer_idx: Any = layer_idx  # an index wherever there is a cache

    def _add_norms_and_output(self, config: Any, bias: bool) -> None:
        self.q_norm = self._head_norm(config) if config.qk_norm else nn.Identity()
        self.k_norm = self._head_norm(config) if config.qk_norm else nn.Identity()
        self.out_proj = nn.Linear(self.num_attention_heads * self.v_head_dim, config.hidden_size, bias=bias)

    def _head_norm(self, config: Any) -> nn.Module:
        return nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)

    def _heads(self, projected: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """(batch, tokens, count * hidden_size) -> `count` tensors (batch, heads, tokens, head size)."""
        batch_size, num_tokens, _ = projected.shape
        heads = projected.view(batch_size, num_tokens, count, self.num_attention_heads, self.head_dim)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, weights = self._weigh(query, key, value, **kwargs)
        return self._output(output.flatten(2)), weights

    def _weigh(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        implementation = self.config._attn_implementation
        return attend(self, query, key, value, implementation=implementation, dropout=self.dropout, **kwargs)

    def _output(self, output: torch.Tensor) -> torch.Tensor:
        return linear(self.out_proj, output)


class SelfAttention(MultiHeadAttention):
    """Multi-head self-attention with one matmul for queries, keys and values.

    Args:
        config: gives `qkv_bias` and what [`MultiHeadAttention`] reads.
        num_attention_heads: `config.num_attention_heads` unless given.
        layer_idx: index of the layer in the cache.
        is_causal: without a mask, let a token attend to itself and the tokens before it alone.
        output_bias: whether the output projection has a bias.
    """

    def __init__(
        self,
        config: Any,
        num_attention_heads: int | None = None,
        layer_idx: int | None = None,
        is_causal: bool = False,
        output_bias: bool = True,
    ):
        super().__init__(config, num_attention_heads or config.num_attention_heads, layer_idx)
        self.is_causal = is_causal
        width = self.num_attention_heads * (2 * self.head_dim + self.v_head_dim)
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self._add_norms_and_output(config, output_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_embedding: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        query_position: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
        measure: Callable[..., torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """(batch, tokens, hidden_size) -> the same shape, and the weights (batch, heads, tokens, keys) if asked for.

        Args:
            attention_mask: additive (float) or boolean (True: attend), broadcast to (batch, heads, tokens, keys).
            rotary_embedding: cosines and sines, see [`rotate`].
            position_bias: (1, heads, tokens, keys), added to the scores.
            past_key_values: keys and values of the tokens before these; those of these tokens are added to it.
            query_position: added to the tokens that make queries and keys, not to those that make values (DETR,
                2005.12872); broadcast to (batch, tokens, hidden_size).
            key_bias: added to all scores of a key, shape (batch, keys), without a gradient.
            measure: what it makes of queries and keys (batch, heads, tokens, head size) and `position_bias` comes
                third.
        """
        query, key, value = self._project(hidden_states)
        if query_position is not None:
            query, key, _ = self._project(hidden_states + query_position)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary_embedding is not None:
            query, key = rotate(query, *rotary_embedding), rotate(key, *rotary_embedding)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        options = {} if key_bias is None else {"key_bias": key_bias}
        output, weights = self._attend(
            query,
            key,
            value,
            attention_mask=attention_mask,
            position_bias=position_bias,
            output_attentions=output_attentions,
            **options,
        )
        return (output, weights) if measure is None else (output, weights, measure(query, key, position_bias))

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        projected = linear(self.qkv_proj, hidden_states)
        if self.v_head_dim == self.head_dim:
            return self._heads(projected, 3)  # (B, H, T, K) each
        widths = [self.num_attention_heads * size for size in (self.head_dim, self.head_dim, self.v_head_dim)]
        parts = projected.split(widths, dim=-1)
        return tuple(part.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2) for part in parts)


class CrossAttention(MultiHeadAttention):
    """Multi-head attention to the encoder's output, whose keys and values are one matmul, made once per sentence when
    there is a cache to keep them. Arguments as for [`SelfAttention`]; `config.cross_attention_hidden_size` is the
    width of that output where it has one of its own."""

    def __init__(self, config: Any, num_attention_heads: int, layer_idx: int | None = None, output_bias: bool = True):
        super().__init__(config, num_attention_heads, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        encoder_size = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
        self.kv_proj = nn.Linear(encoder_size, 2 * config.hidden_size, bias=config.qkv_bias)
        self._add_norms_and_output(config, output_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        query_position: torch.Tensor | None = None,
        key_position: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, hidden_size) -> the same shape, and the weights (batch, heads, tokens, keys) if asked for.

        Args:
            encoder_hidden_states: shape (batch, keys, width of the encoder); not read once the cache holds their keys
                and values.
            attention_mask: additive (float) or boolean (True: attend), broadcast to (batch, heads, tokens, keys).
            past_key_values: an `EncoderDecoderCache`; any other cache has no room for these keys and values.
            query_position, key_position: added to the tokens that make the queries and to those that make the keys,
                not to those that make the values; broadcast to their shapes.
            key_bias: added to all scores of a key, shape (batch, keys), without a gradient.
        """
        if query_position is not None:
            hidden_states = hidden_states + query_position
        (query,) = self._heads(linear(self.q_proj, hidden_states), 1)  # (B, H, T, K)
        key, value = self._keys_and_values(encoder_hidden_states, past_key_values, key_position)
        options = {} if key_bias is None else {"key_bias": key_bias}
        return self._attend(
            self.q_norm(query),
            key,
            value,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            **options,
        )

    def _keys_and_values(
        self, encoder_hidden_states: torch.Tensor, past_key_values: Cache | None, key_position: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cache = past_key_values if isinstance(past_key_values, EncoderDecoderCache) else None
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self._heads(linear(self.kv_proj, encoder_hidden_states), 2)  # (B, H, S, K) each
        if key_position is not None:
            key, _ = self._heads(linear(self.kv_proj, encoder_hidden_states + key_position), 2)
        key = self.k_norm(key)
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value


__all__ = ["CrossAttention", "MultiHeadAttention", "SelfAttention", "attend", "eager_attention_forward", "rotate"]
