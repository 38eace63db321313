"""Boxes: formats, overlaps, refinement, all in fp32.

A box is (centre x, centre y, width, height) in parts of the image's width and height unless corners are spoken of:
(left, top, right, bottom).
"""

import math

import torch

# A layer changes a side by a factor of at most this much: what is exponentiated stays finite.
_LARGEST_GROWTH = math.log(64)


def center_to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Return corners of boxes given by centre and size: (..., 4) -> (..., 4), fp32."""
    centers, sizes = boxes.float().split(2, dim=-1)
    return torch.cat((centers - sizes / 2, centers + sizes / 2), dim=-1)


def corners_to_center(corners: torch.Tensor) -> torch.Tensor:
    """Return centre and size of boxes given by corners: (..., 4) -> (..., 4), fp32."""
    first, last = corners.float().split(2, dim=-1)
    return torch.cat(((first + last) / 2, last - first), dim=-1)


def box_iou(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return intersection over union of boxes given by corners, and the generalised one (1902.09630), which falls on
    to -1 with the distance of boxes that do not meet.

    Args:
        first, second: corners, shapes (..., 4) that broadcast: (N, 1, 4) and (M, 4) give all pairs.

    Returns:
        Two fp32 tensors of the broadcast shape without the 4; 0 where both boxes are empty.
    """
    first, second = first.float(), second.float()
    least = torch.finfo(torch.float32).tiny
    intersection = _extent(
        torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    )
    union = _extent(first[..., :2], first[..., 2:]) + _extent(second[..., :2], second[..., 2:]) - intersection
    hull = _extent(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    iou = intersection / union.clamp(min=least)
    return iou, iou - (hull - union) / hull.clamp(min=least)


def _extent(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return (last - first).clamp(min=0).prod(-1)


def refine_boxes(boxes: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """Move and scale boxes in units of their own size, so that one number means the same for a small and a large box.

    Args:
        boxes: shape (..., 4).
        deltas: shape (..., 4): shift of the centre in widths and heights, logarithm of the growth of both sides.

    Returns:
        fp32 boxes of shape (..., 4).
    """
    centers, sizes = boxes.float().split(2, dim=-1)
    shifts, growths = deltas.float().split(2, dim=-1)
    growths = growths.clamp(-_LARGEST_GROWTH, _LARGEST_GROWTH)
    return torch.cat((centers + shifts * sizes, sizes * growths.exp()), dim=-1)


__all__ = ["box_iou", "center_to_corners", "corners_to_center", "refine_boxes"]
