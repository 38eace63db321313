"""Self-attention of the Vision Transformer's layers, with what some families of it add.

Shapes: B batch, H heads, T tokens, K head size.
"""

from typing import Any

import torch
from torch import nn

from .attention import CrossAttention, SelfAttention
from .cpu_linear import linear
from .layers import make_norm


class HfViTSelfAttention(SelfAttention):
    """Self-attention that may leave out the bias of the keys (BEiT, DINOv3) and norm its output before the projection
    (EVA-02, 2303.11331).

    Args:
        config: gives `key_bias`, `proj_bias`, `norm_type`, `attention_output_norm` and what [`SelfAttention`] reads.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, output_bias=config.proj_bias)
        self.query_bias: nn.Parameter | None = None
        self.value_bias: nn.Parameter | None = None
        if config.qkv_bias and not config.key_bias:
            self.qkv_proj.register_parameter("bias", None)
            self.query_bias = nn.Parameter(torch.zeros(self.num_attention_heads * self.head_dim))
            self.value_bias = nn.Parameter(torch.zeros(self.num_attention_heads * self.v_head_dim))
        width = self.num_attention_heads * self.v_head_dim
        self.output_norm = make_norm(config, width) if config.attention_output_norm else nn.Identity()

    def _head_norm(self, config: Any) -> nn.Module:
        return make_norm(config, self.head_dim)

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = super()._project(hidden_states)  # (B, H, T, K) each
        if self.query_bias is not None and self.value_bias is not None:
            shape = (self.num_attention_heads, 1, -1)
            query, value = query + self.query_bias.view(shape), value + self.value_bias.view(shape)
        return query, key, value

    def _output(self, output: torch.Tensor) -> torch.Tensor:
        return super()._output(self.output_norm(output))


class TalkingHeadsSelfAttention(HfViTSelfAttention):
    """Self-attention whose heads are mixed linearly before and after the softmax (2003.02436; CaiT, 2103.17239). It is
    computed in plain matmuls, whatever the attention implementation."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.score_mixing = nn.Linear(self.num_attention_heads, self.num_attention_heads)
        self.weight_mixing = nn.Linear(self.num_attention_heads, self.num_attention_heads)

    def _weigh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scores = torch.matmul(query * self.head_dim**-0.5, key.transpose(2, 3))  # (B, H, T, T)
        if position_bias is not None:
            scores = scores + position_bias
        scores, blocked = _mix_heads(self.score_mixing, scores), None
        if attention_mask is not None:
            if attention_mask.dtype != torch.bool:
                raise ValueError(f"attention_mask must be boolean for talking heads, got {attention_mask.dtype}")
            blocked = ~attention_mask
            scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
        if key_bias is not None:
            scores = scores + key_bias[:, None, None, :].to(scores.dtype)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        weights = _mix_heads(self.weight_mixing, weights)
        if key_bias is not None:  # the mixing's bias is for one token, and a token may stand for several
            more = key_bias[:, None, None, :].exp() - 1  # (B, 1, 1, T)
            weights = weights + (self.weight_mixing.bias[:, None, None] * more).to(weights.dtype)
        if blocked is not None:
            weights = weights.masked_fill(blocked, 0.0)  # to which the mixing's bias added something
        output = torch.matmul(nn.functional.dropout(weights, self.dropout, self.training), value)
        return output.transpose(1, 2), weights if output_attentions else None


class ClassAttention(CrossAttention):
    """Attention of the class tokens to all tokens (CaiT, 2103.17239)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.num_attention_heads, output_bias=config.proj_bias)

    def _head_norm(self, config: Any) -> nn.Module:
        return make_norm(config, self.head_dim)


def _mix_heads(mixing: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Linear map over the heads: (batch, heads, queries, keys) -> the same shape."""
    return linear(mixing, states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_attention(config: Any) -> HfViTSelfAttention:
    """Return the self-attention of a layer."""
    return TalkingHeadsSelfAttention(config) if config.talking_heads else HfViTSelfAttention(config)


__all__ = ["ClassAttention", "HfViTSelfAttention", "TalkingHeadsSelfAttention", "make_attention"]
