"""The decoder a token at a time, on a CPU, as fast as its weights can be read."""

import torch
from torch import nn

from .attention import CrossAttention, SelfAttention, rotate
from .packed_linear import packed

_FIRST_CAPACITY = 64


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
        model: nn.Module,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        num_beams: int = 1,
    ):
        self.decoder, self.lm_head = model.get_decoder(), packed(model.lm_head)
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

    def keep(self, beams: torch.Tensor):
        """Let the texts go on from these beams, shape (batch, beams)."""
        self.ancestors = self.ancestors.gather(1, beams[:, :, None].expand_as(self.ancestors))

    def _step(self, token: torch.Tensor) -> torch.Tensor:
        slot = torch.tensor([self.num_slots])
        states = self.decoder.embed_tokens(token)[:, None] * self.decoder.embed_scale  # (B * beams, 1, d_model)
        states, positions = self.decoder.add_positions(states, slot[None], None, slot, self.num_slots + 1)
        mask = self._mask(positions.get("position_bias"))
        states = states[:, 0]
        for layer in self.layers:
            states = layer(states, self.num_slots, mask, positions.get("rotary_embedding"))
        self.num_slots += 1
        return self.decoder.norm(states)

    def _mask(self, position_bias: torch.Tensor | None) -> torch.Tensor | None:
        """What is added to the scores of the keys (slot by slot, in each the beams), (B or 1, H or 1, beams, keys)."""
        if position_bias is not None:
            position_bias = position_bias.repeat_interleave(self.num_beams, dim=3)
        if self.num_beams == 1:
            return position_bias
        itself = self.beams[None, :, None].expand(len(self.ancestors), -1, -1)
        self.ancestors = torch.cat((self.ancestors, itself), dim=2)  # (B, beams, slots)
        is_ancestor = self.ancestors[:, :, :, None] == self.beams
        mask = _additive(is_ancestor.flatten(2)[:, None], self.dtype)
        return mask if position_bias is None else mask + position_bias


class _CachedLayer:
    """A layer of the decoder with the keys and values it attends to."""

    def __init__(self, layer, encoder_hidden_states, encoder_mask, num_beams):
        self.layer, self.num_beams, self.encoder_mask = layer, num_beams, encoder_mask
        own, cross, mlp = layer.attention, layer.cross_attention, layer.mlp
        self.qkv_proj, self.out_proj = packed(own.qkv_proj), packed(own.out_proj)
        self.q_proj, self.cross_out_proj = packed(cross.q_proj), packed(cross.out_proj)
        self.fc1, self.fc2 = packed(mlp.fc1), packed(mlp.fc2)
        self.source_key, self.source_value = (
            tensor.contiguous() for tensor in cross._keys_and_values(encoder_hidden_states, None)
        )  # (B, H, S, D) each
        shape = (2, len(encoder_hidden_states), own.num_attention_heads, _FIRST_CAPACITY * num_beams, own.head_dim)
        self.cache = encoder_hidden_states.new_empty(shape)

    def __call__(self, states, slot, mask, rotary_embedding):
        """(batch * beams, d_model) -> the same shape"""
        layer = self.layer
        states = self._residual(states, layer.attention_norm, self._attend_own, slot, mask, rotary_embedding)
        states = self._residual(states, layer.cross_attention_norm, self._attend_source)
        return self._residual(states, layer.mlp_norm, self._mlp)

    def _residual(self, states, norm, branch, *args):
        if self.layer.norm_first:
            return states + branch(norm(states), *args)
        return norm(states + branch(states, *args))

    def _attend_own(self, states, slot, mask, rotary_embedding):
        attention = self.layer.attention
        query, key, value = self._heads(self.qkv_proj(states), 3)
        query, key = attention.q_norm(query), attention.k_norm(key)
        if rotary_embedding is not None:
            query, key = rotate(query, *rotary_embedding), rotate(key, *rotary_embedding)
        start, end = slot * self.num_beams, (slot + 1) * self.num_beams
        if end > self.cache.shape[3]:
            self.cache = torch.cat((self.cache, torch.empty_like(self.cache)), dim=3)
        keys, values = self.cache[:, :, :, :end].unbind(0)
        keys[:, :, start:].copy_(key)
        values[:, :, start:].copy_(value)
        return self.out_proj(self._attend(query, keys, values, mask))

    def _attend_source(self, states):
        (query,) = self._heads(self.q_proj(states), 1)
        query = self.layer.cross_attention.q_norm(query)
        return self.cross_out_proj(self._attend(query, self.source_key, self.source_value, self.encoder_mask))

    def _mlp(self, states):
        return self.fc2(self.layer.mlp.activate(self.fc1(states)))

    def _heads(self, projected, count):
        """(batch * beams, count * d_model) -> `count` tensors (batch, heads, beams, head size)."""
        attention = self.layer.attention
        heads = projected.view(-1, self.num_beams, count, attention.num_attention_heads, attention.head_dim)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _attend(query, key, value, mask):
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, beams, D)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where the mask is true, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


def can_be_cached(model: nn.Module) -> bool:
    """Whether [`CachedDecoder`] computes what the model computes: on a CPU, in eval mode, its layers those of this
    package, watched or changed by nothing."""
    decoder = model.get_decoder()
    parts = [part for layer in decoder.layers for part in (layer, layer.attention, layer.cross_attention, layer.mlp)]
    return (
        all(type(layer.attention) is SelfAttention for layer in decoder.layers)
        and all(type(layer.cross_attention) is CrossAttention for layer in decoder.layers)
        and not model.training
        and model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_autocast_enabled("cpu")
        and not any(_is_watched(part) for part in (model, decoder, *parts))
        and not any("forward" in vars(part) for part in (model, decoder, *parts))
    )


def _is_watched(part: nn.Module) -> bool:
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    # transformers leaves hooks behind that record attentions and hidden states when they are asked for.
    return any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks)


__all__ = ["CachedDecoder", "can_be_cached"]
