"""Evaluation of a detector: COCO's average precision of boxes, and samples of what it finds and misses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from hf_vit.tasks.object_detection.data import NO_CATEGORY, AnnotatedData
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.vision.coco_scores import MAX_DETECTIONS, average_precision, ground_truth
from hf_vit.vision.decoding import decode
from hf_vit.vision.processors import normalize

MAX_SAMPLE_SIDE = 512  # pixels
_RIGHT_IOU = 0.5


class DetectionEvaluator(Evaluator):
    """`loss`, its terms, and COCO's metrics of all predictions, none left out for its score.

    Args:
        final: keep what the card shows.
        num_samples: images that the card shows.
    """

    def __init__(self, data: AnnotatedData, split: str, processor: Any, *, final: bool, num_samples: int = 0):
        self.data = data
        self.split = data.splits[split]
        self.processor = processor
        self.final = final
        self.num_samples = num_samples
        self.sizes = np.stack([self.split["height"][:], self.split["width"][:]], axis=-1)  # (images, 2)
        # Of each prediction the image's index, the class, the score and the box (left, top, right, bottom).
        self.state: dict[str, Any] = {"loss": 0.0, "images": 0, "rows": []}
        self.threshold = 0.5

    def step(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        pixels = normalize(batch["pixel_values"], self.processor)
        return self.found(model(pixel_values=pixels, labels=batch["labels"]), batch)

    def found(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Predictions of a batch, its best `MAX_DETECTIONS` an image, in pixels of the images."""
        sizes = torch.as_tensor(self.sizes[batch["sample_key"][:, 1]])
        boxes = self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        rows = []
        for index, image in zip(batch["sample_key"][:, 1].tolist(), boxes):
            best = image["scores"].float().argsort(descending=True)[:MAX_DETECTIONS]
            columns = [image["labels"][best, None], image["scores"][best, None], image["boxes"][best]]
            rows.append((index, torch.cat([each.double() for each in columns], dim=-1)))  # (predictions, 6)
        return {"loss": outputs.loss, "rows": rows}

    def update(self, batch: Batch, outputs: dict[str, Any]) -> None:
        count = len(batch["sample_key"])
        self.state["loss"] += float(outputs["loss"]) * count
        self.state["images"] += count
        for index, rows in outputs["rows"]:
            found = rows.cpu().numpy()
            self.state["rows"].append(np.concatenate([np.full((len(found), 1), float(index)), found], axis=1))

    def compute(self) -> dict[str, Any]:
        truth = ground_truth(self.split, self.data.class_names, has_masks=False)
        metrics = average_precision(truth, [self._coco(row) for row in self.rows()])
        self.threshold = metrics.get("best_threshold", self.threshold)
        if not self.final:
            metrics = {name: value for name, value in metrics.items() if isinstance(value, float)}
        return {"loss": self.state["loss"] / self.state["images"], **metrics}

    def headline(self, metrics: Mapping[str, Any]) -> str:
        return f"AP {metrics['ap']:.1%}, AP50 {metrics['ap50']:.1%}"

    def rows(self) -> np.ndarray:
        """Image index, class, score and box of each prediction, (predictions, 7), in the split's order."""
        rows = np.concatenate(self.state["rows"]) if self.state["rows"] else np.zeros((0, 7))
        return rows[np.lexsort((-rows[:, 2], rows[:, 0]))]

    def _coco(self, row: np.ndarray, ids: Sequence[int] | None = None) -> dict[str, Any]:
        left, top, right, bottom = row[3:7].tolist()
        category = int(row[1])
        return {
            "image_id": int(row[0]),
            "category_id": category if ids is None else ids[category],
            "bbox": [left, top, right - left, bottom - top],
            "score": float(row[2]),
        }

    def coco_results(self) -> list[dict[str, Any]]:
        """COCO's result file of the split: with the source's own numbers of images and categories, without classes
        that the source lacks."""
        image_ids, ids = self.split["image_id"][:], self.data.checked.category_ids
        found = [self._coco(row, ids) for row in self.rows() if ids[int(row[1])] != NO_CATEGORY]
        return [{**each, "image_id": image_ids[each["image_id"]]} for each in found]

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Of each image the objects above the threshold of best F1, boxes (left, top, right, bottom) in pixels."""
        names, files = self.data.class_names, self.split["file_name"][:]
        for index, rows in enumerate(self._by_image()):
            kept = rows[rows[:, 2] >= self.threshold]
            objects = [
                {"label": names[int(row[1])], "score": float(row[2]), "box": np.round(row[3:7], 2).tolist()}
                for row in kept
            ]
            yield {"index": index, "file": files[index], "objects": objects}

    def _by_image(self) -> list[np.ndarray]:
        rows = self.rows()
        return np.split(rows, np.searchsorted(rows[:, 0], np.arange(1, len(self.split))))

    def _chosen(self) -> list[int]:
        """Indices of the images that the card shows, evenly spaced."""
        count = min(self.num_samples, len(self.split))
        return np.unique(np.linspace(0, len(self.split) - 1, count).astype(int)).tolist() if count else []

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Images of the split as PNG, evenly spaced, with what was found, rightly or not, and what was missed."""
        chosen = self._chosen()
        by_image = self._by_image() if chosen else []
        samples = []
        for number, index in enumerate(chosen):
            row = self.split[index]
            picture = decode(row["image"], index)
            scale = min(1.0, MAX_SAMPLE_SIDE / max(picture.size))
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
            picture.save(folder / f"sample_{number}.png")
            objects = self._outcomes(by_image[index], row["objects"], scale)
            samples.append({"file": f"sample_{number}.png", "objects": objects})
        return samples

    def _outcomes(self, rows: np.ndarray, objects: Mapping[str, Any], scale: float) -> list[dict[str, Any]]:
        """Predictions above the threshold as right or wrong, surest first, and the objects that none found."""
        names = self.data.class_names
        kept = rows[rows[:, 2] >= self.threshold]
        counted = [i for i, is_crowd in enumerate(objects["iscrowd"]) if not is_crowd]
        truth = torch.tensor([objects["bbox"][i] for i in counted], dtype=torch.float64).reshape(-1, 4)
        truth[:, 2:] += truth[:, :2]
        labels = [objects["category"][i] for i in counted]
        overlaps = box_iou(torch.from_numpy(kept[:, 3:7].copy()), truth).numpy()
        free = np.ones(len(labels), dtype=bool)
        found = []
        for row, of_row in zip(kept, overlaps):
            fits = free & (np.asarray(labels, dtype=int) == int(row[1])) & (of_row >= _RIGHT_IOU)
            if fits.any():
                free[int(np.where(fits, of_row, -1).argmax())] = False
            box = (row[3:7] * scale).round(1).tolist()
            outcome = "right" if fits.any() else "wrong"
            found.append({"label": names[int(row[1])], "box": box, "outcome": outcome, "score": float(row[2])})
        for index in np.flatnonzero(free):
            box = (truth[index].numpy() * scale).round(1).tolist()
            found.append({"label": names[labels[index]], "box": box, "outcome": "missed"})
        return found
