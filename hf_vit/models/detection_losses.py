"""Losses of detection and of masks, computed in fp32.

Shapes: L layers, B batch, G groups, Q queries of a group, C class logits, T objects of all images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .box_ops import box_iou, center_to_corners
from .matcher import Match, match, matching_costs

# Share of the score in the geometric mean that is the target of a matched query's class; the rest is its IoU.
_SCORE_SHARE = 0.25
# What a target is at least: a box that misses its object is still to learn which object it was given.
_LEAST_TARGET = 0.01
# Power of an unmatched query's score that weighs it (2008.13367): most of them are easy. With 2, as there, queries
# that share an object settle at a score of about a third, for hardly anything pushes down those that lose it.
_GAMMA = 1.0


class Objects(NamedTuple):
    """The objects of all images of a batch, one after the other."""

    class_labels: torch.Tensor  # (T,)
    boxes: torch.Tensor  # (T, 4), fp32
    sizes: list[int]  # of each image
    masks: list[torch.Tensor] | None  # of each image, (objects, height, width)


def read_labels(labels: Sequence[dict[str, Any]], batch_size: int, num_labels: int, needs_masks: bool) -> Objects:
    """Return the objects of a batch.

    Args:
        labels: for each image, `class_labels` of shape (objects,), `boxes` of shape (objects, 4) as (centre x,
            centre y, width, height) in parts of the image and, with `needs_masks`, `masks` of shape (objects, height,
            width), of one height and width in the batch. An image may have no objects.
        batch_size: number of images.
        num_labels: number of classes.

    Raises:
        ValueError: if the number of images or a shape does not fit, or (where looking costs no synchronisation: on the
            CPU) a class is not in [0, num_labels) or a box is not finite, has a negative side or does not look
            normalised.
    """
    if len(labels) != batch_size:
        raise ValueError(f"labels must have an entry for each of the {batch_size} images, got {len(labels)}")
    wanted = ("class_labels", "boxes", *(["masks"] if needs_masks else []))
    for entry in labels:
        if missing := [name for name in wanted if name not in entry]:
            raise ValueError(f"labels must have {missing[0]}, got {', '.join(entry)}")
        size = len(entry["class_labels"])
        if entry["class_labels"].shape != (size,) or entry["boxes"].shape != (size, 4):
            raise ValueError(
                f"labels must have class_labels of shape (objects,) and boxes of shape (objects, 4), got "
                f"{tuple(entry['class_labels'].shape)} and {tuple(entry['boxes'].shape)}"
            )
        if needs_masks and (entry["masks"].ndim != 3 or len(entry["masks"]) != size):
            raise ValueError(
                f"labels must have masks of shape ({size}, height, width), got {tuple(entry['masks'].shape)}"
            )
    masks = [entry["masks"] for entry in labels] if needs_masks else None
    if masks and len({mask.shape[1:] for mask in masks if len(mask)}) > 1:
        raise ValueError(
            f"labels must have masks of one size in a batch, got {sorted({tuple(m.shape[1:]) for m in masks})}"
        )
    classes = torch.cat([entry["class_labels"] for entry in labels]).long()
    boxes = torch.cat([entry["boxes"] for entry in labels]).float()
    if boxes.device.type == "cpu" and len(boxes) and not torch.compiler.is_compiling():
        _check_values(classes, boxes, num_labels)
    return Objects(classes, boxes, [len(entry["class_labels"]) for entry in labels], masks)


def _check_values(classes: torch.Tensor, boxes: torch.Tensor, num_labels: int) -> None:
    low, high = (value.item() for value in classes.aminmax())
    if low < 0 or high >= num_labels:
        raise ValueError(f"class_labels must be in [0, {num_labels}), got {low if low < 0 else high}")
    # Half a box may stick out of an image, where a crop cut it and nobody clamped it; pixels are far beyond.
    wrong = ~(boxes.isfinite() & (boxes >= -0.5) & (boxes <= 1.5)).all(1) | (boxes[:, 2:] < 0).any(1)
    if wrong.any():
        raise ValueError(
            "boxes must be finite (centre x, centre y, width, height) in parts of the image, got "
            f"{boxes[wrong][0].tolist()}"
        )


def match_objects(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    objects: Objects,
    config: Any,
    num_groups: int = 1,
    mask_costs: torch.Tensor | None = None,
    num_copies: int = 1,
) -> list[Match]:
    """Match the queries of each layer and group with the objects of their image.

    Args:
        logits: shape (layers, batch, groups * queries, class logits).
        boxes: shape (layers, batch, groups * queries, 4).
        config: gives the weights of the costs.
        mask_costs: of the last layer's first group, shape (batch, queries, objects of the largest image).
        num_copies: queries of a group that an object is given.
    """
    classes = pad_sequence(list(objects.class_labels.split(objects.sizes)), batch_first=True)  # (B, T)
    costs = matching_costs(
        logits, boxes, classes, pad_sequence(list(objects.boxes.split(objects.sizes)), batch_first=True), config
    )
    if mask_costs is not None:
        costs[-1, :, : mask_costs.shape[1]] += mask_costs
    return match(costs, objects.sizes, num_groups, num_copies)


def box_and_class_losses(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    objects: Objects,
    pairs: Match,
    config: Any,
    num_boxes: torch.Tensor | float,
) -> dict[str, torch.Tensor]:
    """Return the losses of one layer.

    Args:
        logits: shape (batch, queries, class logits).
        boxes: shape (batch, queries, 4).
        pairs: of the layer.
        config: gives `class_loss` and `eos_coefficient`.
        num_boxes: by which sums are divided.

    Returns:
        `loss_ce`, `loss_bbox`, `loss_giou`, and `cardinality_error` without gradient.
    """
    predicted, wanted = boxes[pairs.images, pairs.queries].float(), objects.boxes[pairs.objects]
    iou, giou = box_iou(center_to_corners(predicted), center_to_corners(wanted))
    classes = objects.class_labels[pairs.objects]
    if config.class_loss == "softmax":
        loss_ce = _softmax_loss(logits, classes, pairs, config.eos_coefficient)
    else:
        loss_ce = _iou_aware_loss(logits, classes, iou.detach(), pairs) / num_boxes
    return {
        "loss_ce": loss_ce,
        "loss_bbox": (predicted - wanted).abs().sum() / num_boxes,
        "loss_giou": (1 - giou).sum() / num_boxes,
        "cardinality_error": _cardinality_error(logits, objects.sizes, config.class_loss == "softmax"),
    }


def _softmax_loss(logits: torch.Tensor, classes: torch.Tensor, pairs: Match, eos_coefficient: float) -> torch.Tensor:
    """Cross entropy with the class of its object, or none, for each query: (2005.12872), a weighted mean."""
    no_object = logits.shape[-1] - 1
    targets = classes.new_full(logits.shape[:2], no_object).index_put((pairs.images, pairs.queries), classes)
    weights = torch.ones(no_object + 1, device=logits.device).index_fill(
        0, torch.tensor(no_object, device=logits.device), eos_coefficient
    )
    return nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, weights)


def _iou_aware_loss(logits: torch.Tensor, classes: torch.Tensor, iou: torch.Tensor, pairs: Match) -> torch.Tensor:
    """Binary cross entropy of each class, summed: the target of a matched query's class is the geometric mean of its
    score and its box's IoU (2406.03459), so that scores tell how well boxes fit; a query that is not matched weighs
    little where its score is small (2008.13367). The other classes of a matched one weigh as much as its own."""
    logits = logits.float()
    scores = logits.detach().sigmoid()
    index = (pairs.images, pairs.queries, classes)
    matched = scores[index] ** _SCORE_SHARE * iou ** (1 - _SCORE_SHARE)
    targets = torch.zeros_like(logits).index_put(index, matched.clamp(min=_LEAST_TARGET))
    weights = (scores**_GAMMA).index_put(index[:2], scores.new_ones(()))
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")


@torch.no_grad()
def _cardinality_error(logits: torch.Tensor, sizes: list[int], is_softmax: bool) -> torch.Tensor:
    """Mean difference between the numbers of objects found and given: a number to watch."""
    found = logits.argmax(-1) != logits.shape[-1] - 1 if is_softmax else logits.amax(-1) > 0
    return (found.sum(1).float() - torch.tensor(sizes, device=logits.device)).abs().mean()


def weighted_sum(losses: dict[str, torch.Tensor], config: Any) -> torch.Tensor:
    """Return the sum of all losses, each times its coefficient of `config`; those of layers below the last, whose
    names end with the layer, have the same."""
    weights = {"loss_ce": config.class_loss_coefficient}
    weights.update({f"loss_{name}": getattr(config, f"{name}_loss_coefficient") for name in _WEIGHTED})
    terms = []
    for name, loss in losses.items():
        term = "_".join(name.split("_")[:2])
        if term in weights:
            terms.append(weights[term] * loss)
    return torch.stack(terms).sum()


_WEIGHTED = ("bbox", "giou", "mask", "dice")

__all__ = [
    "Objects",
    "box_and_class_losses",
    "match_objects",
    "read_labels",
    "weighted_sum",
]
