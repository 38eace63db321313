"""Proof of a heat map: the score of a class while the patches that it calls important are taken away or put in.

Shapes: B batch, N patches, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Curves:
    """Scores of a class with part of the patches gone, or there alone.

    Attributes:
        fractions: of the patches, from 0 to 1, shape (steps,).
        deletion: scores without this fraction of the patches, the most important gone first, shape (batch, steps).
        insertion: scores with this fraction of the patches alone, the most important there first, likewise.
    """

    fractions: torch.Tensor
    deletion: torch.Tensor
    insertion: torch.Tensor

    @property
    def deletion_area(self) -> torch.Tensor:
        """Area under the deletion curve, shape (batch,): small if the map finds what the model needs."""
        return torch.trapezoid(self.deletion, self.fractions)

    @property
    def insertion_area(self) -> torch.Tensor:
        """Area under the insertion curve, shape (batch,): large if the map finds what the model needs."""
        return torch.trapezoid(self.insertion, self.fractions)


@torch.no_grad()
def deletion_and_insertion(
    model: PreTrainedModel, pixel_values: torch.Tensor, heat_map: torch.Tensor, target: int, num_steps: int = 16
) -> Curves:
    """Deletion and insertion curves (RISE, 1806.07421). What is gone has the mean colour of its image.

    Args:
        model: a classifier of images.
        pixel_values: normalised images, shape (batch, channels, height, width).
        heat_map: importance of each patch, shape (batch, rows, columns).
        target: the class.
        num_steps: steps from no patch to all, at most one a patch.

    Raises:
        ValueError: num_steps is below 1, or the map's batch is another.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if heat_map.dim() != 3 or len(heat_map) != len(pixel_values):
        raise ValueError(f"heat_map must have shape ({len(pixel_values)}, rows, columns), got {tuple(heat_map.shape)}")
    num_patches = heat_map[0].numel()
    counts = torch.linspace(0, num_patches, min(num_steps, num_patches) + 1).round()  # (S,)
    order = heat_map.flatten(1).argsort(descending=True, stable=True)
    ranks = order.argsort().view_as(heat_map).float()  # (B, rows, columns), 0 for the most important
    size = tuple(pixel_values.shape[2:])
    ranks = torch.nn.functional.interpolate(ranks[:, None], size=size, mode="nearest")  # (B, 1, height, width)
    blank = pixel_values.mean((2, 3), keepdim=True)
    deletion, insertion = [], []
    for count in counts.tolist():
        chosen = ranks < count
        deletion.append(scores_of(model, model(torch.where(chosen, blank, pixel_values)).logits)[:, target])
        insertion.append(scores_of(model, model(torch.where(chosen, pixel_values, blank)).logits)[:, target])
    return Curves(counts / num_patches, torch.stack(deletion, 1), torch.stack(insertion, 1))


def scores_of(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What transformers' pipeline makes of logits (batch, classes): probabilities, or of a regression the values."""
    config: Any = model.config
    logits = logits.float()
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return logits.sigmoid()
    return logits.softmax(-1)


__all__ = ["Curves", "deletion_and_insertion", "scores_of"]
