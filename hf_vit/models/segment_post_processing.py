"""Segments of a photograph from masks on the canvas.

Shapes: Q queries, C classes, H height, W width of the photograph.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# Of pixels that no segment has. Segments count from 1, so that none can be taken for it, nor for COCO's void, 0.
VOID = -1


def mask_on_photograph(
    logits: torch.Tensor, content_box: tuple[float, float, float, float], size: tuple[int, int]
) -> torch.Tensor:
    """Return masks of the canvas on the photograph, by bilinear interpolation at its pixels' centres.

    Args:
        logits: shape (masks, rows, columns), of the canvas.
        content_box: (left, top, width, height) of the photograph in parts of the canvas.
        size: (height, width) of the photograph.

    Returns:
        fp32 tensor of shape (masks, height, width).
    """
    left, top, width, height = content_box
    x = left + width * (torch.arange(size[1], device=logits.device) + 0.5) / size[1]
    y = top + height * (torch.arange(size[0], device=logits.device) + 0.5) / size[0]
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) * 2 - 1  # (H, W, 2)
    sampled = nn.functional.grid_sample(logits[None].float(), grid[None], padding_mode="border", align_corners=False)
    return sampled[0]


def panoptic_segments(
    scores: torch.Tensor,
    labels: torch.Tensor,
    masks: "Masks",
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Sequence[int],
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Give each pixel to one segment: of those whose mask has it, the one with the highest score times probability.
    The score decides between segments alone: it keeps no pixel from a segment that is the only one to claim it. What
    no mask has belongs to none, also where there is one segment.

    Args:
        scores, labels: of the queries that are kept, shape (kept,).
        masks: of these queries.
        mask_threshold: probability from which on a mask has a pixel.
        overlap_mask_area_threshold: part of its mask that a segment must be given; others are dropped.
        label_ids_to_fuse: classes of which there is one segment at most.

    Returns:
        The segments' ids, int32 of shape (height, width), -1 for none; and of each segment `id` (from 1),
        `label_id`, `was_fused` and `score`.
    """
    best = torch.zeros(masks.size, device=scores.device)
    owners = torch.full(masks.size, VOID, dtype=torch.int32, device=scores.device)
    claims: dict[int, torch.Tensor] = {}  # area of each segment's mask, or where it is, if others may join it
    first_of: dict[int, int] = {}
    best_scores: dict[int, float] = {}
    for i, (probabilities, label) in enumerate(zip(masks, labels.tolist())):  # one by one: photographs are large
        has, value = probabilities >= mask_threshold, scores[i] * probabilities
        wins = has & (value > best)
        # What is fused is one segment from the start: its queries are no rivals.
        owner = first_of.setdefault(label, i) if label in label_ids_to_fuse else i
        best, owners = torch.where(wins, value, best), torch.where(wins, owner, owners)
        if label in label_ids_to_fuse:
            claims[owner] = claims[owner] | has if owner in claims else has
        else:
            claims[owner] = has.sum()
        best_scores[owner] = max(best_scores.get(owner, 0.0), scores[i].item())
    segmentation = torch.full_like(owners, VOID)
    segments: list[dict[str, Any]] = []
    for owner, claim in claims.items():
        owned = owners == owner
        if not owned.any() or owned.sum() < overlap_mask_area_threshold * claim.sum():
            continue
        label = int(labels[owner])
        segment = {"id": len(segments) + 1, "label_id": label, "was_fused": label in label_ids_to_fuse}
        segments.append({**segment, "score": best_scores[owner]})
        segmentation[owned] = segment["id"]
    return segmentation, segments


class Masks:
    """Probabilities of some queries' masks on a photograph, made one after the other.

    Args:
        logits: of an image, shape (queries, rows, columns).
        queries: which of them, shape (kept,).
        content_box: see [`mask_on_photograph`].
        size: (height, width) of the photograph; that of the logits unless given.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        queries: torch.Tensor,
        content_box: tuple[float, float, float, float],
        size: tuple[int, int] | None,
    ):
        self.logits, self.queries, self.content_box = logits, queries, content_box
        self.size = (logits.shape[1], logits.shape[2]) if size is None else size

    def __iter__(self) -> Iterator[torch.Tensor]:
        for query in self.queries:
            yield mask_on_photograph(self.logits[query][None], self.content_box, self.size)[0].sigmoid()


__all__ = ["VOID", "Masks", "mask_on_photograph", "panoptic_segments"]
