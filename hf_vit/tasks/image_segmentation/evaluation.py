"""Evaluation of a segmenter: panoptic quality, COCO's average precision of masks, and samples of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit.tasks.object_detection.data import NO_CATEGORY, AnnotatedData
from hf_vit.tasks.object_detection.evaluation import MAX_SAMPLE_SIDE, DetectionEvaluator
from hf_vit.tasks.task import Batch
from hf_vit.vision.annotations.rows import encode_mask
from hf_vit.vision.coco_scores import MAX_DETECTIONS, average_precision, ground_truth
from hf_vit.vision.decoding import decode
from hf_vit.vision.panoptic_scores import PanopticScores
from hf_vit.vision.targets import decode_masks

PANOPTIC_THRESHOLD = 0.5  # of scores; what is below is no segment
_SUMS = "panoptic"


class SegmentationEvaluator(DetectionEvaluator):
    """`loss`, `pq` of all classes, with `_things` and `_stuff`, and COCO's metrics of the masks of things.

    For average precision nothing is left out for its score, and masks may overlap; a panoptic segmentation takes the
    segments that score above 0.5, and gives each pixel to one.
    """

    def __init__(self, data: AnnotatedData, split: str, processor: Any, *, final: bool, num_samples: int = 0):
        super().__init__(data, split, processor, final=final, num_samples=num_samples)
        self.is_thing = data.checked.is_thing
        self.scores = PanopticScores(data.class_names, self.is_thing)
        # Beside each image's rows the run lengths of their masks, and of samples what each pixel was taken for.
        self.state.update({"masks": [], "samples": [], _SUMS: self.scores.state})

    def found(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Predictions of a batch: masks of things, its best `MAX_DETECTIONS` an image, and segments."""
        indices = batch["sample_key"][:, 1].tolist()
        options: dict[str, Any] = {"target_sizes": torch.as_tensor(self.sizes[indices])}
        process = self.processor
        masks = process.post_process_instance_segmentation(
            outputs, threshold=0.0, return_binary_maps=True, top_k=MAX_DETECTIONS, **options
        )
        panoptic = process.post_process_panoptic_segmentation(outputs, threshold=PANOPTIC_THRESHOLD, **options)
        rows = [(index, *self._things(each)) for index, each in zip(indices, masks)]
        segments = [(each["segmentation"].cpu().numpy(), each["segments_info"]) for each in panoptic]
        return {"loss": outputs.loss, "rows": rows, "segments": segments}

    def _things(self, found: Mapping[str, Any]) -> tuple[torch.Tensor, list[str]]:
        """Rows of class, score and box of the masks that have a pixel, and their run lengths."""
        rows, counts = [], []
        for mask, info in zip(found["segmentation"].cpu().numpy(), found["segments_info"]):
            if self.is_thing[info["label_id"]] and mask.any():
                (y,), (x,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
                rows.append([info["label_id"], info["score"], x[0], y[0], x[-1] + 1, y[-1] + 1])
                counts.append(encode_mask(mask)["counts"].decode())
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6), counts

    def update(self, batch: Batch, outputs: dict[str, Any]) -> None:
        rows = [(index, of_image) for index, of_image, _ in outputs["rows"]]
        super().update(batch, {"loss": outputs["loss"], "rows": rows})
        shown = set(self._chosen())
        for (index, _, counts), (segmentation, segments) in zip(outputs["rows"], outputs["segments"]):
            self.state["masks"] += counts
            objects = self.split[index]["objects"]
            masks = decode_masks(objects["segmentation"], segmentation.shape).numpy()
            self.scores.update(segmentation, segments, masks, objects["category"], objects["iscrowd"])
            if index in shown:
                self.state["samples"].append((index, segmentation, segments))

    def compute(self) -> dict[str, Any]:
        self.scores.state = self.state[_SUMS]
        panoptic = self.scores.compute()
        truth = ground_truth(self.split, self.data.class_names, has_masks=True)
        truth["annotations"] = [each for each in truth["annotations"] if self.is_thing[each["category_id"]]]
        metrics = average_precision(truth, self._coco_masks(), "segm")
        self.threshold = metrics.get("best_threshold", self.threshold)
        if not any(self.is_thing):
            metrics = {}
        metrics = {**metrics, **panoptic}
        if not self.final:
            metrics = {name: value for name, value in metrics.items() if isinstance(value, float)}
        return {"loss": self.state["loss"] / self.state["images"], **metrics}

    def headline(self, metrics: Mapping[str, Any]) -> str:
        of_masks = f", mask AP {metrics['ap']:.1%}" if "ap" in metrics else ""
        return f"PQ {metrics['pq']:.1%}{of_masks}"

    def _sorted(self) -> Iterator[tuple[np.ndarray, str]]:
        """Rows with their masks, in the order of `rows`."""
        rows = np.concatenate(self.state["rows"]) if self.state["rows"] else np.zeros((0, 7))
        for index in np.lexsort((-rows[:, 2], rows[:, 0])):
            yield rows[index], self.state["masks"][index]

    def _coco_masks(self, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        found = []
        for row, counts in self._sorted():
            size = self.sizes[int(row[0])].tolist()
            result = self._coco(row, ids)
            del result["bbox"]  # by which COCO's tool would score
            found.append({**result, "segmentation": {"size": size, "counts": counts}})
        return found

    def coco_results(self) -> list[dict[str, Any]]:
        """COCO's result file of the things' masks, with the source's own numbers of images and categories, without
        classes that the source lacks."""
        image_ids = self.split["image_id"][:]
        found = self._coco_masks(self.data.checked.category_ids)
        known = [each for each in found if each["category_id"] != NO_CATEGORY]
        return [{**each, "image_id": image_ids[each["image_id"]]} for each in known]

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Of each image the things above the threshold of best F1, with box and COCO's run lengths of the mask."""
        names, files = self.data.class_names, self.split["file_name"][:]
        objects: list[list[dict[str, Any]]] = [[] for _ in files]
        for row, counts in self._sorted():
            if row[2] >= self.threshold:
                mask = {"size": self.sizes[int(row[0])].tolist(), "counts": counts}
                box = np.round(row[3:7], 2).tolist()
                one = {"label": names[int(row[1])], "score": float(row[2]), "box": box, "mask": mask}
                objects[int(row[0])].append(one)
        for index, (file, found) in enumerate(zip(files, objects)):
            yield {"index": index, "file": file, "objects": found}

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Images of the split as PNG, evenly spaced, beside maps of the class of each pixel (from 1 on, 0 for none),
        as found and as annotated; where a segment ends, the map has 255."""
        samples = []
        for number, (index, segmentation, segments) in enumerate(sorted(self.state["samples"], key=lambda s: s[0])):
            row = self.split[index]
            picture = decode(row["image"], index)
            scale = min(1.0, MAX_SAMPLE_SIDE / max(picture.size))
            size = (round(picture.width * scale), round(picture.height * scale))
            picture.resize(size).save(folder / f"sample_{number}.png")
            truth, own = self._annotated(row["objects"], segmentation.shape)
            for name, ids, labels in (
                ("found", segmentation, {each["id"]: each["label_id"] for each in segments}),
                ("annotated", truth, own),
            ):
                drawn = Image.fromarray(class_map(ids, labels)).resize(size, Image.Resampling.NEAREST)
                drawn.save(folder / f"sample_{number}_{name}.png")
            files = {name: f"sample_{number}_{name}.png" for name in ("found", "annotated")}
            samples.append({"file": f"sample_{number}.png", **files})
        return samples

    def _annotated(self, objects: Mapping[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, dict[int, int]]:
        """Ids of the annotated segments, (H, W), crowds left out, and the class of each."""
        ids, labels = np.zeros(size, dtype=int), {}
        for number, mask in enumerate(decode_masks(objects["segmentation"], size).numpy(), start=1):
            if not objects["iscrowd"][number - 1]:
                ids[mask.astype(bool)] = number
                labels[number] = objects["category"][number - 1]
        return ids, labels


def class_map(ids: np.ndarray, labels: Mapping[int, int]) -> np.ndarray:
    """What a picture of segments is drawn from.

    Args:
        ids: of each pixel's segment, (H, W).
        labels: class index of each segment; other ids are none.

    Returns:
        uint8 (H, W): class index + 1, at most 254; 0 where there is no segment; 255 on the border of one.
    """
    found = np.zeros(ids.shape, dtype=np.uint8)
    for segment, label in labels.items():
        found[ids == segment] = min(label + 1, 254)
    border = np.zeros(ids.shape, dtype=bool)
    border[1:] |= ids[1:] != ids[:-1]
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    found[border] = 255
    return found
