"""Tokens that are left out in training, and the positions of those that are kept.

Shapes: B batch, H heads, T tokens, K head size, S kept tokens.
"""

import torch
from torch import nn


class PatchDropout(nn.Module):
    """PatchDropout (2208.07220): in training, each image keeps a random share of its patches, in their order. Prefix
    tokens stay.

    Args:
        drop_prob: share of the patches that is dropped, in [0, 1); one patch is always kept.
        num_prefix_tokens: tokens before the patches.
    """

    def __init__(self, drop_prob: float, num_prefix_tokens: int):
        super().__init__()
        self.drop_prob = drop_prob
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, hidden_size) -> the kept tokens (batch, kept, hidden_size) and their indices (batch, kept),
        or what was given and None."""
        if self.drop_prob == 0 or not self.training:
            return hidden_states, None
        batch_size, num_tokens, hidden_size = hidden_states.shape
        num_patches = num_tokens - self.num_prefix_tokens
        num_kept = max(1, round(num_patches * (1 - self.drop_prob)))
        order = torch.rand(batch_size, num_patches, device=hidden_states.device).argsort(1)
        patches = order[:, :num_kept].sort(1).values + self.num_prefix_tokens
        prefix = torch.arange(self.num_prefix_tokens, device=hidden_states.device).expand(batch_size, -1)
        kept = torch.cat((prefix, patches), dim=1)  # (B, S)
        return hidden_states.gather(1, kept[:, :, None].expand(-1, -1, hidden_size)), kept

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3g}"


def of_kept_tokens(
    rotary_embedding: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the kept tokens: ([heads,] tokens, head size) each -> (batch, 1 or heads, kept, head size),
    or what was given if none was dropped."""
    if kept is None:
        return rotary_embedding
    cos, sin = (table[None] if table.ndim == 2 else table for table in rotary_embedding)  # (1 or H, T, K)
    return cos[:, kept].transpose(0, 1), sin[:, kept].transpose(0, 1)


def of_kept_pairs(position_bias: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Bias of the pairs of kept tokens: (1, heads, tokens, tokens) -> (batch, heads, kept, kept), or what was given if
    none was dropped."""
    if kept is None:
        return position_bias
    return position_bias[0][:, kept[:, :, None], kept[:, None, :]].transpose(0, 1)


__all__ = ["PatchDropout", "of_kept_pairs", "of_kept_tokens"]
