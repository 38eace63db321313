"""Positions in a text: added to the tokens, rotating queries and keys, or added to the attention scores.

The modules for attention take what a stack knows of its tokens and return what its self-attention layers are given.

Shapes: B batch, T tokens, S keys, R distances, H heads, K head size.
"""

import math
from typing import Any

import torch
from torch import nn

from .attention import SelfAttention
from .cpu_linear import linear
from .position_encoding import sincos_table


def text_position_ids(attention_mask: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
    """Number of tokens that the mask keeps before each token.

    Args:
        attention_mask: shape (batch, keys), nonzero where there is a token; or a causal mask of shape
            (batch, 1, tokens, keys), boolean (True: attend) or additive (0: attend); or None.
        slots: index of each token among the keys, shape (tokens,).

    Returns:
        int64 tensor of shape (batch or 1, tokens).
    """
    if not isinstance(attention_mask, torch.Tensor):
        return slots[None]
    if attention_mask.ndim == 2:
        return ((attention_mask != 0).cumsum(-1) - 1).clamp(min=0)[:, slots]
    attended = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    return (attended[:, 0].sum(-1) - 1).clamp(min=0)  # a token attends to itself and to those before it


def holds_several_texts(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> bool:
    """Whether a row holds several texts one behind the other, as transformers' masks tell it: there is no mask, and
    the positions, shape (batch or 1, tokens), do not go on by one. While a graph is traced nobody can know: False."""
    if position_ids is None or attention_mask is not None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return bool((position_ids.diff(dim=-1) != 1).any())


def check_position_ids(
    config: Any,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slots: torch.Tensor,
    batch_size: int,
    input_name: str,
) -> None:
    """Check that given positions are of the tokens' shape and that `config.position_embedding` can express them.

    Args:
        config: gives `position_embedding` and `max_position_embeddings`.
        position_ids: shape (batch or 1, tokens).
        attention_mask, slots: see [`text_position_ids`].
        batch_size: number of rows of tokens.
        input_name: what the model calls the tokens.

    Raises:
        ValueError: if they are not.
    """
    if tuple(position_ids.shape) not in ((batch_size, len(slots)), (1, len(slots))):
        raise ValueError(
            f"position_ids must be of shape {(batch_size, len(slots))}, as the tokens, got {tuple(position_ids.shape)}"
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if config.position_embedding == "learned" and position_ids.device.type == "cpu":
        (low, high), limit = (int(value) for value in position_ids.aminmax()), config.max_position_embeddings
        # As `generate` counts them for a text that is too long.
        if high >= limit and torch.equal(position_ids, slots.expand_as(position_ids)):
            raise ValueError(
                f"{input_name} must have at most {limit} tokens (max_position_embeddings), got {high + 1}"
            )
        if low < 0 or high >= limit:
            raise ValueError(
                f"position_ids must be in [0, {limit}) (max_position_embeddings), got {low if low < 0 else high}"
            )
    sees_distances_alone = config.position_embedding in ("relative", "relative_xl")
    if sees_distances_alone and not _go_on_by_one(position_ids, attention_mask, slots):
        raise ValueError(
            "position_ids must count the tokens of a text one by one with position_embedding="
            f"{config.position_embedding}, which sees distances alone, got {position_ids.tolist()}"
        )


def _go_on_by_one(position_ids: torch.Tensor, attention_mask: torch.Tensor | None, slots: Any) -> bool:
    """Whether positions differ as the slots of the tokens do, or as many tokens as the mask keeps between them; or
    whether they are those of several texts, each of which does."""
    if holds_several_texts(position_ids, attention_mask):
        return True
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        return _differ_as_slots(position_ids, attention_mask, slots)
    is_padding = torch.zeros_like(position_ids, dtype=torch.bool)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        is_padding = attention_mask[:, slots] == 0
    for expected in (slots[None], text_position_ids(attention_mask, slots)):
        shift = (position_ids - expected).float()  # (B, T), padding aside the same for all tokens of a text
        low, high = shift.masked_fill(is_padding, torch.inf), shift.masked_fill(is_padding, -torch.inf)
        if (low.amin(1) >= high.amax(1)).all():
            return True
    return False


def _differ_as_slots(position_ids: torch.Tensor, attention_mask: torch.Tensor, slots: Any) -> bool:
    """Whether every token is as far from each that it attends to as their slots are; of tokens in a cache nothing is
    known but their slots."""
    shift = position_ids - slots  # (B, T)
    if slots[0] > 0:
        return bool((shift == shift[:, :1]).all())
    attended = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    return bool((~attended[:, 0, :, : len(slots)] | (shift[:, :, None] == shift[:, None])).all())


class SinusoidalTextPosition(nn.Module):
    """Sines and cosines of the position (1706.03762): (batch, tokens) -> (batch, tokens, d_model)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.d_model = config.d_model

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return sincos_table(position_ids.float(), self.d_model)


class LearnedTextPosition(nn.Embedding):
    """One learnt vector per position: (batch, tokens) -> (batch, tokens, d_model)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.max_position_embeddings + config.position_offset, config.d_model)
        self.offset = config.position_offset

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(position_ids + self.offset)


class RotaryTextPosition(nn.Module):
    """Rotary embedding (2104.09864) with periods from 2 pi to 2 pi * 10,000 over each head.

    Returns:
        `rotary_embedding`: cosines and sines, each (batch, 1, tokens, head size).
    """

    def __init__(self, config: Any, num_attention_heads: int, is_causal: bool):
        super().__init__()
        self.head_dim = config.d_model // num_attention_heads

    def forward(self, position_ids: torch.Tensor, slots: torch.Tensor, num_keys: int) -> dict:
        sines, cosines = sincos_table(position_ids.float(), self.head_dim)[:, None].chunk(2, dim=-1)
        return {"rotary_embedding": (torch.cat((cosines, cosines), dim=-1), torch.cat((sines, sines), dim=-1))}


class RelativeTextPosition(nn.Module):
    """A learnt number per head and bucket of distances, one table for all layers of a stack (T5, 1910.10683): near
    distances have a bucket each, farther ones share buckets that widen with the logarithm, and all beyond
    `relative_attention_max_distance` share the last. Without causality half the buckets look ahead.

    Returns:
        `position_bias`: (1, heads, tokens, keys).
    """

    def __init__(self, config: Any, num_attention_heads: int, is_causal: bool):
        super().__init__()
        self.is_causal = is_causal
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.bias = nn.Embedding(self.num_buckets, num_attention_heads)

    def bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """Buckets of distances (position of the query minus position of the key), of the same shape, int64."""
        num_buckets, offset = self.num_buckets, 0
        if not self.is_causal:
            num_buckets //= 2
            offset = (distance < 0) * num_buckets
            distance = distance.abs()
        distance = distance.clamp(min=0)
        num_exact = num_buckets // 2
        share = (distance.clamp(min=1).float() / num_exact).log() / math.log(self.max_distance / num_exact)
        wide = num_exact + (share * (num_buckets - num_exact)).long()
        return offset + torch.where(distance < num_exact, distance, wide.clamp(max=num_buckets - 1))

    def forward(self, position_ids: torch.Tensor, slots: torch.Tensor, num_keys: int) -> dict:
        distance = slots[:, None] - torch.arange(num_keys, device=slots.device)  # (T, S)
        return {"position_bias": self.bias(self.bucket(distance)).permute(2, 0, 1)[None].contiguous()}


class RelativeXLTextPosition(nn.Module):
    """Encodings with which [`RelativeXLSelfAttention`] scores distances.

    Returns:
        `position_bias`: the encodings of all distances that can occur, shape (distances, d_model), and the row of each
        pair of token and key, shape (tokens, keys).
    """

    def __init__(self, config: Any, num_attention_heads: int, is_causal: bool):
        super().__init__()
        self.d_model = config.d_model
        self.is_causal = is_causal

    def forward(self, position_ids: torch.Tensor, slots: torch.Tensor, num_keys: int) -> dict:
        # Keys ahead of the token are masked if causal: any row does for them.
        first = 0 if self.is_causal else 1 - num_keys
        distances = torch.arange(first, num_keys, device=slots.device)
        rows = slots[:, None] - torch.arange(num_keys, device=slots.device) - first  # (T, S)
        return {"position_bias": (sincos_table(distances.float(), self.d_model), rows.clamp(min=0))}


class RelativeXLSelfAttention(SelfAttention):
    """Self-attention whose scores add what a query makes of a key's content and of its distance, each with a learnt
    offset of the query: (q + u) k + (q + v) r, where r is a linear map of the sinusoidal encoding of the distance
    (Transformer-XL, 1901.02860). Arguments as for [`SelfAttention`]."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.r_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(self.num_attention_heads, 1, self.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(self.num_attention_heads, 1, self.head_dim))

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position_bias: Any = None, **kwargs: Any
    ) -> Any:
        encodings, rows = position_bias
        positions = linear(self.r_proj, encodings.to(query.dtype)).unflatten(
            1, (self.num_attention_heads, -1)
        )  # (R, H, K)
        scores = torch.matmul((query + self.position_bias) * self.head_dim**-0.5, positions.permute(1, 2, 0))
        scores = scores.gather(3, rows.expand(*scores.shape[:2], -1, -1))  # (B, H, T, R) -> (B, H, T, S)
        return super()._attend(query + self.content_bias, key, value, position_bias=scores, **kwargs)


# Added to the tokens.
TOKEN_POSITIONS = {"sinusoidal": SinusoidalTextPosition, "learned": LearnedTextPosition}
# Given to the self-attention layers.
ATTENTION_POSITIONS = {
    "rope": RotaryTextPosition,
    "relative": RelativeTextPosition,
    "relative_xl": RelativeXLTextPosition,
}


__all__ = [
    "ATTENTION_POSITIONS",
    "TOKEN_POSITIONS",
    "RelativeXLSelfAttention",
    "check_position_ids",
    "holds_several_texts",
    "text_position_ids",
]
