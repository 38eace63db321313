"""Token Merging (ToMe, 2210.09461).

Shapes: B batch, T tokens, A and N patches of the two halves, R merged patches, K head size, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Rows of the similarity matrix that are there at a time. A fixed number, so that what an image gives does not depend
# on the others beside it.
_ROWS = 128


@dataclass(frozen=True)
class TokenMerging:
    """Bipartite soft matching: every second patch looks for the most similar of the others, and the pairs that are the
    most similar are merged, each member weighed by the patches that it stands for. The merged token has the position
    of the one that was found; the order of the patches stays. Prefix tokens take no part.

    Similarity is the cosine between the means over the heads of the keys, as attention sees them. The choice of pairs
    has no gradient, the means have.

    Args:
        number: pairs to merge, at most half of the patches.
        num_prefix_tokens: tokens before the patches.
    """

    number: Any
    num_prefix_tokens: int

    def measure(self, query: torch.Tensor, key: torch.Tensor, position_bias: torch.Tensor | None) -> torch.Tensor:
        """Keys (batch, heads, tokens, head size) -> their means over the heads, of length one, (batch, tokens, head
        size), in fp32."""
        return nn.functional.normalize(key.detach().float().mean(1), dim=-1)

    def __call__(self, hidden_states: torch.Tensor, groups: Any, measured: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(batch, tokens, hidden_size) -> (batch, tokens - number, hidden_size), and the `TokenGroups`."""
        batch_size, num_tokens, hidden_size = hidden_states.shape
        first, number = self.num_prefix_tokens, self.number
        similarity, found = best_matches(measured[:, first::2], measured[:, first + 1 :: 2])
        order = similarity.argsort(dim=1, descending=True, stable=True)  # (B, A)
        merged = order[:, :number]
        target = first + 1 + 2 * found.gather(1, merged)  # (B, R), indices in the sequence
        merged = first + 2 * merged

        sizes = groups.sizes
        if sizes is None:
            sizes = torch.ones(batch_size, num_tokens, dtype=torch.long, device=hidden_states.device)
        weighted = hidden_states * sizes[:, :, None].to(hidden_states.dtype)
        moved = weighted.gather(1, merged[:, :, None].expand(-1, -1, hidden_size))
        weighted = weighted.scatter_add(1, target[:, :, None].expand(-1, -1, hidden_size), moved)
        sizes = sizes.scatter_add(1, target, sizes.gather(1, merged))

        everything = torch.arange(num_tokens, device=hidden_states.device).expand(batch_size, -1)
        is_merged = torch.zeros_like(everything).scatter(1, merged, 1)
        left = is_merged.argsort(dim=1, stable=True)[:, : num_tokens - number]  # (B, T), in their order
        sizes = sizes.gather(1, left)
        weighted = weighted.gather(1, left[:, :, None].expand(-1, -1, hidden_size))
        moves = everything - is_merged.cumsum(1)  # one index less for each that was merged before
        moves = moves.scatter(1, merged, moves.gather(1, target))
        groups = groups.moved(moves, groups.position.gather(1, left), sizes)
        return weighted / sizes[:, :, None].to(hidden_states.dtype), groups


def best_matches(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest product of each row with a column, and which column that is, a part of the matrix at a time.

    Args:
        rows: shape (batch, rows, size); `columns` likewise.

    Returns:
        Products and indices, each of shape (batch, rows).
    """
    columns = columns.transpose(1, 2)
    # A graph for any number of patches cannot count its parts.
    parts = rows.split(_ROWS, dim=1) if isinstance(rows.shape[1], int) else (rows,)
    best = [torch.matmul(part, columns).max(dim=2) for part in parts]
    return torch.cat([part.values for part in best], dim=1), torch.cat([part.indices for part in best], dim=1)


__all__ = ["TokenMerging", "best_matches"]
