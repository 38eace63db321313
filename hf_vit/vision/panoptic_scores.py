"""Panoptic quality (arXiv 1801.00868) of segments that come image by image.

torchmetrics counts; what COCO adds to the paper is done before: pixels that no segment of a prediction claims count
as missed, and crowds, segments of objects that nobody told apart, are neither found nor missed.

Shapes: H and W those of an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.detection import PanopticQuality

_MOSTLY = 0.5  # a wrong segment more of whose pixels are unlabelled or of a crowd of its class does not count


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    """Quotients of whole numbers in float64: torchmetrics makes them in the default type."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


class PanopticScores:
    """Counts of matched, wrong and missed segments by class.

    `state` holds the sums, (classes + 1,) each, which of several processes are added up.

    Args:
        class_names: in the order of the class indices.
        is_thing: whether objects of a class can be counted.
    """

    def __init__(self, class_names: Sequence[str], is_thing: Sequence[bool]):
        self.class_names = list(class_names)
        self.is_thing = list(is_thing)
        self.other = len(class_names)  # a class of its own, so that torchmetrics does not take it for unlabelled
        self.unlabelled = self.other + 1
        self._names = ("iou_sum", "true_positives", "false_positives", "false_negatives")
        things = {index for index, each in enumerate(is_thing) if each}
        self.metric = PanopticQuality(things, {*range(self.other + 1)} - things)
        self.state = {name: np.zeros(self.other + 1) for name in self._names}

    def update(
        self,
        segmentation: np.ndarray,
        segments: Sequence[Mapping[str, Any]],
        masks: np.ndarray,
        categories: Sequence[int],
        is_crowd: Sequence[bool],
    ) -> None:
        """Count an image.

        Args:
            segmentation: ids of the predicted segments, (H, W); an id that `segments` lacks is no segment.
            segments: `id` and `label_id` of each.
            masks: of the true segments, (n, H, W), none of which overlap.
            categories: class indices of the true segments, (n,).
        """
        target = np.full((*segmentation.shape, 2), self.unlabelled)  # class and number of each pixel's segment
        target[..., 1] = 0
        crowds: dict[int, np.ndarray] = {}
        for number, (mask, category, crowd) in enumerate(zip(masks, categories, is_crowd), start=1):
            filled = mask.astype(bool)
            target[filled] = (self.other, 0) if crowd else (category, number if self.is_thing[category] else 0)
            if crowd:
                crowds[category] = crowds.get(category, np.zeros_like(filled)) | filled
        found = np.full((*segmentation.shape, 2), self.other)
        found[..., 1] = 0
        is_unlabelled = target[..., 0] == self.unlabelled
        for segment in segments:
            filled = segmentation == segment["id"]
            category = segment["label_id"]
            of_crowd = filled & crowds[category] if category in crowds else np.zeros_like(filled)
            ignored = (filled & is_unlabelled).sum() + of_crowd.sum()
            if not (of_crowd.any() and ignored > _MOSTLY * filled.sum()):
                found[filled] = (category, segment["id"] if self.is_thing[category] else 0)
        self.metric.reset()
        with _double_precision():
            self.metric.update(torch.from_numpy(found)[None], torch.from_numpy(target)[None])
        order = [self.metric.cat_id_to_continuous_id[index] for index in range(self.other + 1)]
        for name in self._names:
            self.state[name] += getattr(self.metric, name).double().numpy()[order]

    def compute(self) -> dict[str, Any]:
        """`pq`, `sq`, `rq` of all classes that occur, the same with `_things` and `_stuff`, fractions in [0, 1], and
        `panoptic_classes`: `label`, `pq`, `sq`, `rq` and `support` of each."""
        iou, right, wrong, missed = (self.state[name][: self.other] for name in self._names)
        occurring = right + wrong + missed > 0
        quality = iou / np.maximum(right, 1)
        recognition = right / np.maximum(right + wrong / 2 + missed / 2, 1e-12)
        values = {"pq": quality * recognition, "sq": quality, "rq": recognition}
        things = np.array(self.is_thing)
        metrics: dict[str, Any] = {}
        for ending, chosen in {"": occurring, "_things": occurring & things, "_stuff": occurring & ~things}.items():
            if chosen.any():
                metrics.update({f"{name}{ending}": float(value[chosen].mean()) for name, value in values.items()})
        metrics.setdefault("pq", 0.0)
        metrics["panoptic_classes"] = [
            {
                "label": label,
                **{name: float(value[index]) if occurring[index] else None for name, value in values.items()},
                "support": int(right[index] + missed[index]),
            }
            for index, label in enumerate(self.class_names)
        ]
        return metrics
