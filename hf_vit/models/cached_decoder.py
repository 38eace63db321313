"""The decoder a token at a time, on a CPU, as fast as its weights can be read.

Shapes: B batch, H heads, S keys, K head size.
"""

from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import nn

from .attention import CrossAttention, SelfAttention, rotate
from .cpu_linear import direct
from .cpu_operators import Guarded, hooks_of
from .encoder_decoder import HfTransformerDecoder
from .int8_linear import Int8Linear
from .layers import MLP, DropPath
from .transformer_layer import HfTransformerLayer

_FIRST_CAPACITY = 64
_RECORDING = "transformers.utils.output_capturing"


class CachedDecoder:
    """The decoder of a translation model for one batch of sources: takes the next token of every text and gives the
    logits of the one after. The beams of a text are queries over one set of keys and values: those of its source are
    there once, and those of its own tokens stay where they were written, whichever beams go on; `ancestors` says which
    beam wrote the tokens that lead to each.

    Args:
        model: an `HfTransformerForConditionalGeneration` that [`can_be_cached`].
        encoder_hidden_states: shape (batch, source tokens, d_model).
        encoder_attention_mask: shape (batch, source tokens), nonzero for tokens; or None.
        num_beams: texts for each source.
    """

    def __init__(
        self,
        model: Any,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        num_beams: int = 1,
    ) -> None:
        self.decoder, self.lm_head = model.get_decoder(), _direct_linear(model.lm_head)
        self.num_beams, self.num_slots = num_beams, 0
        self.dtype = encoder_hidden_states.dtype
        mask = None
        if encoder_attention_mask is not None and not encoder_attention_mask.all():
            mask = _additive(encoder_attention_mask[:, None, None, :] != 0, self.dtype)  # (B, 1, 1, S)
        self.layers = [_CachedLayer(layer, encoder_hidden_states, mask, num_beams) for layer in self.decoder.layers]
        self.beams = torch.arange(num_beams)
        self.ancestors = torch.empty(len(encoder_hidden_states), num_beams, 0, dtype=torch.long)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next tokens, shape (batch * beams, vocabulary).

        Args:
            token_ids: shape (batch * beams, tokens), what comes after the tokens given so far.
        """
        for token in token_ids.unbind(1):
            states = self._step(token)
        return self.lm_head(states)

    def keep(self, beams: torch.Tensor) -> None:
        """Let the texts go on from these beams, shape (batch, beams)."""
        self.ancestors = self.ancestors.gather(1, beams[:, :, None].expand_as(self.ancestors))

    def drop(self, is_kept: torch.Tensor) -> None:
        """Forget the sources that are not kept, shape (batch,)."""
        self.ancestors = self.ancestors[is_kept]
        for layer in self.layers:
            layer.drop(is_kept)

    def _step(self, token: torch.Tensor) -> torch.Tensor:
        slot = torch.tensor([self.num_slots])
        states = self.decoder.embed_tokens(token)[:, None] * self.decoder.embed_scale  # (B * beams, 1, d_model)
        states, positions = self.decoder.add_positions(states, slot[None], None, slot, self.num_slots + 1)
        mask, rotary = self._mask(positions.get("position_bias")), positions.get("rotary_embedding")
        if rotary is not None:
            rotary = [part[0] for part in rotary]  # (1, 1, K): every text is at the same slot
        states = states[:, 0]
        for layer in self.layers:
            states = layer(states, self.num_slots, mask, rotary)
        self.num_slots += 1
        return self.decoder.norm(states)

    def _mask(self, position_bias: torch.Tensor | None) -> torch.Tensor | None:
        """Mask and bias to add to the scores of the keys (slot by slot, in each the beams), (B * H, beams, S)."""
        mask = position_bias
        if position_bias is not None:
            mask = position_bias.repeat_interleave(self.num_beams, dim=3)
        if self.num_beams > 1:
            itself = self.beams[None, :, None].expand(len(self.ancestors), -1, -1)
            self.ancestors = torch.cat((self.ancestors, itself), dim=2)  # (B, beams, slots)
            is_ancestor = self.ancestors[:, :, :, None] == self.beams
            of_beams = _additive(is_ancestor.flatten(2)[:, None], self.dtype)
            mask = of_beams if mask is None else of_beams + mask
        return None if mask is None else _by_head(mask, len(self.ancestors), self.layers[0].num_heads)


class _CachedLayer:
    """A layer of the decoder with the keys and values it attends to. With few rows the time goes into calling
    operators, so it calls as few as it can."""

    def __init__(
        self, layer: Any, encoder_hidden_states: torch.Tensor, encoder_mask: torch.Tensor | None, num_beams: int
    ) -> None:
        own, cross, mlp = layer.attention, layer.cross_attention, layer.mlp
        self.norm_first, self.activate = layer.norm_first, mlp.activate if mlp.is_gated else mlp.activation
        self.norms = [_direct(norm) for norm in (layer.attention_norm, layer.cross_attention_norm, layer.mlp_norm)]
        self.q_norm, self.k_norm, self.cross_q_norm = own.q_norm, own.k_norm, cross.q_norm
        self.qk_norm = type(own.q_norm) is not nn.Identity
        self.qkv_proj, self.out_proj = _direct_linear(own.qkv_proj), _direct_linear(own.out_proj)
        self.q_proj, self.cross_out_proj = _direct_linear(cross.q_proj), _direct_linear(cross.out_proj)
        self.fc1, self.fc2 = _direct_linear(mlp.fc1), _direct_linear(mlp.fc2)
        self.num_beams, self.num_heads, self.head_dim = num_beams, own.num_attention_heads, own.head_dim
        self.batch_size = len(encoder_hidden_states)
        keys_and_values = cross._keys_and_values(encoder_hidden_states, None)
        self.source = [states.flatten(0, 1).contiguous() for states in keys_and_values]  # (B * H, S, K) each
        self.source_mask = None
        if encoder_mask is not None:
            self.source_mask = _by_head(encoder_mask, self.batch_size, self.num_heads)  # (B * H, 1, S)
        self.cache = self.source[0].new_empty(2, len(self.source[0]), _FIRST_CAPACITY * num_beams, self.head_dim)
        self.nothing = self.cache.new_zeros(1, 1, 1)

    def drop(self, is_kept: torch.Tensor) -> None:
        """Forget the sources that are not kept, shape (batch,)."""
        self.batch_size = int(is_kept.sum())
        rows = is_kept.repeat_interleave(self.num_heads)
        self.source = [states[rows] for states in self.source]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[rows]
        self.cache = self.cache[:, rows]

    def __call__(self, states: torch.Tensor, slot: int, mask: torch.Tensor | None, rotary_embedding: Any) -> Any:
        """(batch * beams, d_model) -> the same shape"""
        attention_norm, cross_attention_norm, mlp_norm = self.norms
        if self.norm_first:
            states = states + self._attend_own(attention_norm(states), slot, mask, rotary_embedding)
            states = states + self._attend_source(cross_attention_norm(states))
            return states + self.fc2(self.activate(self.fc1(mlp_norm(states))))
        states = attention_norm(states + self._attend_own(states, slot, mask, rotary_embedding))
        states = cross_attention_norm(states + self._attend_source(states))
        return mlp_norm(states + self.fc2(self.activate(self.fc1(states))))

    def _attend_own(self, states: torch.Tensor, slot: int, mask: torch.Tensor | None, rotary_embedding: Any) -> Any:
        projected = self._heads(self.qkv_proj(states), 3)
        query, new = projected[0], projected[1:]
        if self.qk_norm or rotary_embedding is not None:
            query, key = self.q_norm(query), self.k_norm(new[0])
            if rotary_embedding is not None:
                query, key = rotate(query, *rotary_embedding), rotate(key, *rotary_embedding)
            new = torch.stack((key, new[1]))
        end = (slot + 1) * self.num_beams
        if end > self.cache.shape[2]:
            self.cache = torch.cat((self.cache, torch.empty_like(self.cache)), dim=2)
        self.cache.narrow(2, end - self.num_beams, self.num_beams).copy_(new)
        keys, values = self.cache.narrow(2, 0, end).unbind()
        return self.out_proj(self._attend(query, keys, values, mask))

    def _attend_source(self, states: torch.Tensor) -> Any:
        query = self._heads(self.q_proj(states), 1)[0]
        if self.qk_norm:
            query = self.cross_q_norm(query)
        keys, values = self.source
        return self.cross_out_proj(self._attend(query, keys, values, self.source_mask))

    def _heads(self, projected: torch.Tensor, count: int) -> Any:
        """(batch * beams, count * d_model) -> (count, batch * heads, beams, head size)."""
        heads = projected.view(self.batch_size, self.num_beams, count, self.num_heads, self.head_dim)
        return heads.permute(2, 0, 3, 1, 4).flatten(1, 2)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> Any:
        """(B * H, beams, K), twice (B * H, S, K), (B * H, beams, S) -> (B * beams, H * K)"""
        if query.dtype == torch.float32:  # for so few queries matmuls are faster than the fused kernel
            added, share = (self.nothing, 0) if mask is None else (mask, 1)
            scores = torch.baddbmm(added, query, key.transpose(1, 2), beta=share, alpha=self.head_dim**-0.5)
            output = torch.bmm(scores.softmax(-1), value)
        else:
            mask = None if mask is None else mask[None]
            output = nn.functional.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)
        if self.num_beams == 1:
            return output.view(self.batch_size, self.num_heads * self.head_dim)
        output = output.view(self.batch_size, self.num_heads, self.num_beams, self.head_dim)
        return output.transpose(1, 2).reshape(self.batch_size * self.num_beams, self.num_heads * self.head_dim)


def _direct_linear(layer: nn.Module) -> Any:
    """Return the fastest function for a linear layer, (rows, in_features) -> (rows, out_features)."""
    return layer.as_function() if type(layer) is Int8Linear else direct(layer)


def _direct(norm: nn.Module) -> Any:
    """Return the fastest function for the norm: calling a module takes longer than norming a few rows."""
    if type(norm) is not nn.LayerNorm:
        return norm
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda states: torch.layer_norm(states, shape, weight, bias, eps)


def _by_head(mask: torch.Tensor, batch_size: int, num_heads: int) -> torch.Tensor:
    """(B or 1, H or 1, beams or 1, S) -> (B * H, beams or 1, S)"""
    return mask.expand(batch_size, num_heads, -1, -1).flatten(0, 1)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where the mask is true, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


# The classes whose methods [`CachedDecoder`] takes the place of, with those methods as this package defines them.
_REPLACED = (HfTransformerDecoder, HfTransformerLayer, SelfAttention, CrossAttention, MLP, DropPath)
_METHODS = {
    (replaced, name): getattr(replaced, name)
    for replaced in _REPLACED
    for owner in replaced.__mro__
    if owner.__module__.rpartition(".")[0] == __name__.rpartition(".")[0]
    for name, value in vars(owner).items()
    if isinstance(value, FunctionType)
}
# Children of theirs that it skips, which do nothing in eval mode.
_SKIPPED = (nn.Dropout, nn.Identity, DropPath)


def can_be_cached(model: Any) -> bool:
    """Whether [`CachedDecoder`] computes what the model computes."""
    return not why_not_cached(model)


def why_not_cached(model: Any) -> list[str]:
    """The reasons why [`CachedDecoder`] may not compute what the model computes, of which there are none if the model
    is on a CPU, in eval mode, its parts those of this package, watched or changed by nothing."""
    if Guarded.mode == "plain":
        return ["HF_VIT_CPU_PATHS=plain"]
    decoder = model.get_decoder()
    reasons = [
        *([f"the model is on {model.device.type}"] if model.device.type != "cpu" else []),
        *(["autocast chooses the precision"] if torch.is_autocast_enabled("cpu") else []),
        *(["the decoder has no layers"] if len(decoder.layers) == 0 else []),
    ]
    if model.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"for float32 and bfloat16 alone, not {str(model.dtype).removeprefix('torch.')}")
    for (owner, name), method in _METHODS.items():
        if getattr(owner, name, None) is not method:
            reasons.append(f"{owner.__name__}.{name} was replaced")
    prepare = type(model).prepare_inputs_for_generation
    if not (_is_own(type(model).forward) and _is_own(prepare)):
        reasons.append(f"{type(model).__name__} computes in its own way")
    found: dict[str, str] = {}  # the first module with each reason
    for name, module in [("model", model), ("model", model.base_model), *_decoding_modules(model)]:
        for reason in _why_not_module(module):
            found.setdefault(reason, name)
    for name, part, allowed in _parts(decoder):
        if type(part) not in allowed:
            found.setdefault(f"is a {type(part).__name__}", name)
    return [*reasons, *(f"{name} {reason}" for reason, name in found.items())]


def _decoding_modules(model: Any) -> Any:
    yield from model.get_decoder().named_modules(prefix="decoder")
    yield from model.lm_head.named_modules(prefix="lm_head")


def _parts(decoder: Any) -> Any:
    """The parts that are replaced or skipped: name, module, classes that it may be of."""
    yield "decoder", decoder, [HfTransformerDecoder]
    yield "decoder.dropout", decoder.dropout, _SKIPPED
    for i, layer in enumerate(decoder.layers):
        prefix = f"decoder.layers.{i}"
        yield prefix, layer, [HfTransformerLayer]
        if type(layer) is HfTransformerLayer:
            yield f"{prefix}.attention", layer.attention, [SelfAttention]
            yield f"{prefix}.cross_attention", layer.cross_attention, [CrossAttention]
            yield f"{prefix}.mlp", layer.mlp, [MLP]
            yield f"{prefix}.mlp.dropout", getattr(layer.mlp, "dropout", None), _SKIPPED
            yield f"{prefix}.dropout", layer.dropout, _SKIPPED
            yield f"{prefix}.drop_path", layer.drop_path, _SKIPPED


def _why_not_module(module: nn.Module) -> list[str]:
    own: Any = type(module)
    reasons = [f"has {name} replaced" for name in _method_names(own) & vars(module).keys()]
    if module.training:
        reasons.append("is in training mode")
    # transformers leaves hooks behind that record attentions and hidden states when they are asked for.
    if any(getattr(hook, "__module__", None) != _RECORDING for hook in hooks_of(module)):
        reasons.append("has hooks")
    return reasons


@lru_cache
def _method_names(module_class: Any) -> frozenset[str]:
    return frozenset(name for name in dir(module_class) if callable(getattr(module_class, name, None)))


def _is_own(method: Any) -> bool:
    """Whether a method is this package's, and not that of somebody's subclass."""
    return method.__module__.rpartition(".")[0] == __name__.rpartition(".")[0]


__all__ = ["CachedDecoder", "can_be_cached", "why_not_cached"]
