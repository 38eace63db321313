"""Average precision as pycocotools computes it, from predictions that come batch by batch.

Nothing is thresholded: of each image the 100 surest predictions count, as COCO has it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100
_SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
_SIZES = ("all", "small", "medium", "large")
_IOU_50 = 0  # the index of IoU 0.5 among COCO's ten


def ground_truth(split: Dataset, class_names: Sequence[str], *, has_masks: bool) -> dict[str, Any]:
    """COCO's JSON of a split: images by their index in it, categories by class index."""
    annotations: list[dict[str, Any]] = []
    rows = split.select_columns([name for name in split.column_names if name != "image"])
    images = []
    for index, row in enumerate(rows):
        size = [row["height"], row["width"]]
        images.append({"id": index, "height": size[0], "width": size[1], "file_name": row["file_name"]})
        objects = row["objects"]
        for number, box in enumerate(objects["bbox"]):
            one = {
                "id": len(annotations) + 1,
                "image_id": index,
                "category_id": objects["category"][number],
                "bbox": box,
                "area": objects["area"][number],
                "iscrowd": int(objects["iscrowd"][number]),
            }
            if has_masks:
                one["segmentation"] = {"size": size, "counts": objects["segmentation"][number]}
            annotations.append(one)
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names)]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}


def average_precision(
    truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> dict[str, Any]:
    """COCO's metrics of predictions.

    Args:
        truth: of `ground_truth`.
        predictions: `image_id`, `category_id`, `score` and `bbox` or `segmentation`, as COCO's result files have them.

    Returns:
        `ap` over the IoU thresholds 0.5 to 0.95, `ap50`, `ap75`, `ap_small` (below 32 x 32 pixels), `ap_medium` and
        `ap_large` (from 96 x 96 on), `ar1`, `ar10`, `ar100`, fractions in [0, 1]; a size that no object has is left
        out. `per_class`: `label`, `ap`, `ap50`, `support`; `sizes`: how many objects are of each size;
        `precision_recall`: for each class its precision at 101 recalls, at IoU 0.5; `best_threshold`: the score above
        which the F1 of all classes together is largest at IoU 0.5, with that `best_f1`.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        reference: Any = COCO()
        reference.dataset = dict(truth)
        reference.createIndex()
        scored = COCOeval(reference, _loaded(reference, predictions), kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    values = dict(zip(_SUMMARY, scored.stats))
    metrics: dict[str, Any] = {name: float(value) for name, value in values.items() if value >= 0}
    for name in ("ap", "ap50", "ap75"):
        metrics.setdefault(name, 0.0)  # of a split without objects
    precision = scored.eval["precision"]  # (IoU, recall, class, size, detections)
    labels = [category["name"] for category in truth["categories"]]
    counts = np.bincount(
        [each["category_id"] for each in truth["annotations"] if not each["iscrowd"]], minlength=len(labels)
    )
    metrics["per_class"] = [
        {
            "label": label,
            "ap": _mean(precision[:, :, index, 0, -1]),
            "ap50": _mean(precision[_IOU_50, :, index, 0, -1]),
            "support": int(counts[index]),
        }
        for index, label in enumerate(labels)
    ]
    metrics["sizes"] = _sizes(truth)
    metrics["precision_recall"] = [
        np.clip(precision[_IOU_50, :, index, 0, -1], 0, None).round(4).tolist() for index in range(len(labels))
    ]
    return {**metrics, **_best_threshold(scored)}


def _loaded(reference: COCO, predictions: Sequence[Mapping[str, Any]]) -> COCO:
    if predictions:
        return reference.loadRes([dict(each) for each in predictions])
    empty = COCO()
    empty.dataset = {**reference.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean(values: np.ndarray) -> float | None:
    """The mean of what was measured; COCO writes -1 where there is no object."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _sizes(truth: Mapping[str, Any]) -> dict[str, int]:
    areas = np.array([each["area"] for each in truth["annotations"] if not each["iscrowd"]], dtype=float)
    small, large = int((areas < 32**2).sum()), int((areas >= 96**2).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}


def _best_threshold(scored: COCOeval) -> dict[str, float]:
    """The score of best F1, by the matches at IoU 0.5 of all classes and sizes."""
    every = tuple(scored.params.areaRng[0])
    found = [each for each in scored.evalImgs if each is not None and tuple(each["aRng"]) == every]
    counts = [each for each in found if len(each["dtScores"])]
    num_objects = sum(int((~np.asarray(each["gtIgnore"], dtype=bool)).sum()) for each in found)
    if not counts or not num_objects:
        return {}
    ignored = np.concatenate([each["dtIgnore"][_IOU_50] for each in counts]).astype(bool)
    scores = np.concatenate([each["dtScores"] for each in counts])[~ignored]
    matched = np.concatenate([each["dtMatches"][_IOU_50] for each in counts])[~ignored] > 0
    if not matched.any():
        return {}
    order = np.argsort(-scores, kind="stable")
    right = matched[order].cumsum()
    f1 = 2 * right / (num_objects + np.arange(1, len(order) + 1))
    best = int(f1.argmax())
    return {"best_threshold": float(scores[order][best]), "best_f1": float(f1[best])}
