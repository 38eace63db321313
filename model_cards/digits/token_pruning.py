"""Pruning by class attention (EViT, 2202.07800).

Shapes: B batch, H heads, T tokens, N patches, R pruned patches, K head size, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ClassAttentionPruning:
    """The patches that the class token looks at most stay, in their order; the others become one token after them, the
    sum of the others times the attention that each has (equation 3 of the paper; the weights are not scaled to one).
    It has the position of the one that had the most, and is a patch like any other from then on.

    Attention is the mean over the heads. Which patches stay has no gradient, the sum has.

    Args:
        number: patches that stay beside the fused one.
        num_prefix_tokens: tokens before the patches.
        class_token_index: index of the class token in the sequence.
    """

    number: int
    num_prefix_tokens: int
    class_token_index: int

    def measure(self, query: torch.Tensor, key: torch.Tensor, position_bias: torch.Tensor | None) -> torch.Tensor:
        """Queries and keys (batch, heads, tokens, head size) -> the class token's attention to each patch, (batch,
        patches)."""
        row = slice(self.class_token_index, self.class_token_index + 1)
        scores = torch.matmul(query[:, :, row] * query.shape[-1] ** -0.5, key.transpose(2, 3))  # (B, H, 1, T)
        if position_bias is not None:
            scores = scores + position_bias[:, :, row]
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        return weights.mean(1)[:, 0, self.num_prefix_tokens :]

    def __call__(self, hidden_states: torch.Tensor, groups: Any, measured: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(batch, tokens, hidden_size) -> (batch, prefix + number + 1, hidden_size), and the `TokenGroups`."""
        batch_size, _, hidden_size = hidden_states.shape
        first, number = self.num_prefix_tokens, self.number
        order = measured.detach().argsort(dim=1, descending=True, stable=True)  # (B, N)
        kept, pruned = first + order[:, :number].sort(dim=1).values, first + order[:, number:]
        prefix = torch.arange(first, device=kept.device).expand(batch_size, -1)
        kept = torch.cat((prefix, kept), dim=1)

        def of(tokens: torch.Tensor) -> torch.Tensor:
            return hidden_states.gather(1, tokens[:, :, None].expand(-1, -1, hidden_size))

        weights = measured.gather(1, pruned - first)[:, None]  # (B, 1, R)
        fused = weights.to(hidden_states.dtype) @ of(pruned)  # (B, 1, D)
        position = groups.position.gather(1, torch.cat((kept, pruned[:, :1]), dim=1))
        moves = torch.full_like(groups.position, first + number)  # to the fused one
        moves = moves.scatter(1, kept, torch.arange(first + number, device=kept.device).expand(batch_size, -1))
        return torch.cat((of(kept), fused), dim=1), groups.moved(moves, position, None)


__all__ = ["ClassAttentionPruning"]
