"""Bipartite matching of predictions and objects (DETR, 2005.12872).

Shapes: L predictions of the same queries (decoder layers), B batch, G groups, Q queries of a group, C class logits,
T objects of the largest image.
"""

from typing import Any, NamedTuple

import torch

from .box_ops import box_iou, center_to_corners

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # needed in training alone
    linear_sum_assignment: Any = None  # type: ignore[no-redef]  # where scipy is missing

# Of the focal loss (1708.02002), by whose difference between "object" and "no object" a sigmoid's cost is told.
_ALPHA, _GAMMA = 0.25, 2.0


class Match(NamedTuple):
    """Pairs of one prediction: of each, the image, the query and the object among those of all images, (pairs,)."""

    images: torch.Tensor
    queries: torch.Tensor
    objects: torch.Tensor


def class_cost(logits: torch.Tensor, is_softmax: bool) -> torch.Tensor:
    """Return what it costs to take each class: (..., classes) -> the same shape, fp32. With `is_softmax`, minus its
    probability (2005.12872); otherwise the focal loss of saying yes less that of saying no (2010.04159)."""
    if is_softmax:
        return -logits.float().softmax(-1)
    yes, no = torch.nn.functional.logsigmoid(logits.float()), torch.nn.functional.logsigmoid(-logits.float())
    return (1 - _ALPHA) * yes.exp() ** _GAMMA * no - _ALPHA * no.exp() ** _GAMMA * yes


@torch.no_grad()
def matching_costs(
    logits: torch.Tensor, boxes: torch.Tensor, class_labels: torch.Tensor, object_boxes: torch.Tensor, config: Any
) -> torch.Tensor:
    """Return what each pair of a query and an object of its image costs.

    Args:
        logits: shape (layers, batch, queries, class logits).
        boxes: shape (layers, batch, queries, 4).
        class_labels: shape (batch, objects), filled up with any class.
        object_boxes: shape (batch, objects, 4), filled up with any boxes.
        config: gives `class_loss`, `class_cost`, `bbox_cost` and `giou_cost`.

    Returns:
        fp32 tensor of shape (layers, batch, queries, objects).
    """
    num_layers, _, num_queries, _ = logits.shape
    index = class_labels[None, :, None].expand(num_layers, -1, num_queries, -1)  # (L, B, Q, T)
    of_class = class_cost(logits, config.class_loss == "softmax").gather(-1, index)
    of_box = torch.cdist(boxes.float(), object_boxes.float()[None], p=1)
    _, giou = box_iou(center_to_corners(boxes)[..., None, :], center_to_corners(object_boxes)[:, None])
    return config.class_cost * of_class + config.bbox_cost * of_box - config.giou_cost * giou


@torch.no_grad()
def match(costs: torch.Tensor, sizes: list[int], num_groups: int = 1, num_copies: int = 1) -> list[Match]:
    """Give each object of an image `num_copies` queries of each group, so that the sum of the costs is least. Where an
    image has more objects than a group has queries, the objects that cost most are left out.

    Args:
        costs: shape (layers, batch, groups * queries, objects); entries beyond an image's objects are not read.
        sizes: number of objects of each image.
        num_groups: groups into which the queries fall.
        num_copies: queries of a group that an object is given, as many as there are.

    Returns:
        The pairs of each layer, of which those with the first group need not come first.

    Raises:
        ImportError: if scipy is missing.
    """
    if linear_sum_assignment is None:
        raise ImportError("a detector's loss needs scipy, which is not installed: pip install scipy")
    device = costs.device
    # Whatever is not finite is taken last, as no solver takes it.
    largest = torch.finfo(torch.float32).max / 1e6
    costs = costs.nan_to_num(nan=largest, posinf=largest, neginf=largest).cpu()
    first_object = [sum(sizes[:i]) for i in range(len(sizes))]
    matches = []
    for layer in costs:
        images, queries, objects = [], [], []
        for image, size in enumerate(sizes):
            first_query = 0
            for group in layer[image, :, :size].chunk(num_groups):
                of_group, of_objects = linear_sum_assignment(group.repeat(1, num_copies).numpy())
                images += [image] * len(of_group)
                queries += (of_group + first_query).tolist()
                objects += (of_objects % max(size, 1) + first_object[image]).tolist()
                first_query += len(group)
        pairs = torch.tensor([images, queries, objects], dtype=torch.int64).to(device)
        matches.append(Match(*pairs))
    return matches


__all__ = ["Match", "class_cost", "match", "matching_costs"]
