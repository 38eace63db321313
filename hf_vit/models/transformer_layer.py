"""The layer of the Transformer's encoder and decoder."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import CrossAttention, SelfAttention
from .cache_argument import one_cache
from .layers import MLP, DropPath, make_norm
from .text_position import RelativeXLSelfAttention


class HfTransformerLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention if there is any, and MLP, each a residual branch with dropout and drop path,
    normed before the branch or after the sum.

    (batch, tokens, d_model) -> the same shape

    Args:
        config: gives the sizes of both stacks.
        stack: "encoder" or "decoder".
        layer_idx: index of the layer in the cache.
        drop_path_rate: of its branches, in [0, 1).
        has_cross_attention: whether it attends to an encoder.
        is_causal: whether a token attends to none behind it where no mask is given. `None`: in the decoder.
    """

    def __init__(
        self,
        config: Any,
        stack: str,
        layer_idx: int,
        drop_path_rate: float,
        has_cross_attention: bool,
        is_causal: bool | None = None,
    ) -> None:
        super().__init__()
        num_heads, ffn_dim = getattr(config, f"{stack}_attention_heads"), getattr(config, f"{stack}_ffn_dim")
        attention = RelativeXLSelfAttention if config.position_embedding == "relative_xl" else SelfAttention
        self.norm_first = config.norm_position == "pre"
        is_causal = stack == "decoder" if is_causal is None else is_causal
        self.attention = attention(config, num_heads, layer_idx, is_causal=is_causal, output_bias=config.use_bias)
        self.attention_norm = make_norm(config)
        self.cross_attention: Any = None
        self.cross_attention_norm: Any = None
        if has_cross_attention:
            self.cross_attention = CrossAttention(config, num_heads, layer_idx, output_bias=config.use_bias)
            self.cross_attention_norm = make_norm(config)
        self.mlp = MLP(
            config.d_model, ffn_dim, config.activation_function, config.activation_dropout, bias=config.use_bias
        )
        self.mlp_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        cache: Cache | None = None,
        query_position: torch.Tensor | None = None,
        encoder_position: torch.Tensor | None = None,
        **attention_kwargs: Any,
    ) -> torch.Tensor:
        """(batch, tokens, d_model) -> the same shape.

        Args:
            position_bias: for the self-attention, whose docstring says the shape.
            encoder_hidden_states: shape (batch, source tokens, d_model); without it there is no cross-attention.
            encoder_attention_mask: additive or boolean, broadcast to (batch, heads, tokens, source tokens).
            past_key_values, cache: keys and values of the tokens before, and of the source, under either name.
            output_attentions: make the attention compute its weights, for whoever records them.
            query_position, encoder_position: added to the tokens, and to those of the encoder, where they make queries
                and keys; broadcast to their shapes.
            attention_kwargs: the rest for the self-attention.
        """
        past_key_values = one_cache(past_key_values, cache)
        own_cache = (
            past_key_values.self_attention_cache
            if isinstance(past_key_values, EncoderDecoderCache)
            else past_key_values
        )
        hidden_states = self._residual(
            hidden_states,
            self.attention_norm,
            lambda states: self.attention(
                states,
                position_bias=position_bias,
                past_key_values=own_cache,
                output_attentions=output_attentions,
                query_position=query_position,
                **attention_kwargs,
            )[0],
        )
        if encoder_hidden_states is not None:
            hidden_states = self._residual(
                hidden_states,
                self.cross_attention_norm,
                lambda states: self.cross_attention(
                    states,
                    encoder_hidden_states,
                    encoder_attention_mask,
                    past_key_values,
                    output_attentions,
                    query_position,
                    encoder_position,
                )[0],
            )
        return self._residual(hidden_states, self.mlp_norm, self.mlp)

    def _residual(self, hidden_states: torch.Tensor, norm: nn.Module, branch: Any) -> torch.Tensor:
        if self.norm_first:
            return hidden_states + self.drop_path(self.dropout(branch(norm(hidden_states))))
        return norm(hidden_states + self.drop_path(self.dropout(branch(hidden_states))))


__all__ = ["HfTransformerLayer"]
