"""Labels of patches that belong to whole images and follow their views: an annotator's kept answers, or the data's own
masks and boxes.

A view brings the position in its image that each of its pixels shows, so that whatever moved the pixels moved the
labels. Shapes: N patches, C classes, P positions of a map, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torchvision.transforms.v2 import functional as F

from hf_vit.files import write_atomically
from hf_vit.tasks.image_classification.annotator import Annotator
from hf_vit.tasks.image_classification.teacher_cache import digest_of
from hf_vit.vision.decoding import open_stored

FILE = "token_labels.safetensors"


def patch_shares(cells: torch.Tensor, num_cells: int, patch_shape: Sequence[int]) -> torch.Tensor:
    """Cells (H, W) that the pixels of a view show, -1 for none, -> the parts (N, num_cells) that each has of a patch's
    pixels that show one; zeros where none does."""
    rows, columns = cells.shape[0] // patch_shape[0], cells.shape[1] // patch_shape[1]
    patches = cells.reshape(rows, patch_shape[0], columns, patch_shape[1]).permute(0, 2, 1, 3)
    patches = patches.reshape(rows * columns, -1) + 1
    ones = torch.ones(patches.shape)
    counts = torch.zeros(len(patches), num_cells + 1).scatter_add_(1, patches, ones)[:, 1:]
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def shown_cells(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions (3, H, W) of a view's pixels (see `TrainTransform.with_positions`) -> indices (H, W) of the cells of
    a map of the whole image, in raster order; -1 beyond the image."""
    y = (positions[0] * rows).long().clamp(0, rows - 1)
    x = (positions[1] * columns).long().clamp(0, columns - 1)
    return torch.where(positions[2] > 0.5, y * columns + x, -1)


class KeptScores:
    """The best classes of each position of every image, as an annotator saw it whole; what they leave over is spread
    evenly over the other classes.

    Args:
        scores: (images, k, rows, columns), probabilities.
        classes: (images, k, rows, columns), their classes.
    """

    def __init__(self, scores: torch.Tensor, classes: torch.Tensor, num_classes: int, patch_shape: Sequence[int]):
        self.scores, self.classes = scores, classes
        self.num_classes, self.patch_shape = num_classes, patch_shape

    def __call__(self, index: int, row: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Distributions (N, C) for the patches of a view of an image."""
        scores, classes = self.scores[index].float().flatten(1).T, self.classes[index].long().flatten(1).T  # (P, k)
        left = (1 - scores.sum(1, keepdim=True)).clamp(min=0) / max(self.num_classes - scores.shape[1], 1)
        cells = left.repeat(1, self.num_classes).scatter(1, classes, scores)  # (P, C)
        cells = cells / cells.sum(1, keepdim=True)
        shown = shown_cells(positions, *self.scores.shape[2:])
        return patch_shares(shown, len(cells), self.patch_shape) @ cells


class DrawnLabels:
    """Masks and boxes of the data: pixels of a mask hold the index of a class, any other value for none; a box holds
    the class that its `category` names, or else the image's.

    Args:
        feature: of the column.
    """

    def __init__(self, feature: Any, class_names: list[str], patch_shape: Sequence[int]):
        self.is_mask = isinstance(feature, Image)
        self.class_names, self.patch_shape = class_names, patch_shape
        inner = getattr(feature, "feature", feature)
        fields = inner[0] if isinstance(inner, list) else inner
        self.fields = dict(fields) if isinstance(fields, Mapping) else {}
        if not self.is_mask and "bbox" not in self.fields:
            raise ValueError(
                "--token_label_column_name takes a column of masks (images) or of objects with `bbox` (x, y, width, "
                f"height in pixels), found {feature}"
            )

    def __call__(self, index: int, row: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Distributions (N, C) for the patches of a view of an image, zeros for those without a label.

        Raises:
            ValueError: the mask has another size than the image, or a box names a class that does not exist.
        """
        height, width = row["size"]
        drawn = self._mask(index, row) if self.is_mask else self._boxes(index, row, height, width)
        if drawn.shape != (height, width):
            raise ValueError(
                f"sample {index}: its mask has {drawn.shape[0]} x {drawn.shape[1]} pixels, its image {height} x "
                f"{width}"
            )
        classes = torch.where((drawn >= 0) & (drawn < len(self.class_names)), drawn, -1).flatten()
        shown = shown_cells(positions, height, width)
        labels = torch.where(shown >= 0, classes[shown.clamp(min=0)], -1)
        return patch_shares(labels, len(self.class_names), self.patch_shape)

    def _mask(self, index: int, row: Mapping[str, Any]) -> torch.Tensor:
        values = np.asarray(open_stored(row["token_label"], index))
        if values.ndim != 2:
            raise ValueError(f"sample {index}: a mask has one channel of class indices, found shape {values.shape}")
        return torch.from_numpy(values.astype(np.int64))

    def _boxes(self, index: int, row: Mapping[str, Any], height: int, width: int) -> torch.Tensor:
        drawn = torch.full((height, width), -1)
        objects = row["token_label"]
        if isinstance(objects, Mapping):
            objects = [dict(zip(objects, values)) for values in zip(*objects.values())]
        for each in objects:
            x, y, box_width, box_height = each["bbox"]
            is_inside = 0 <= x <= x + box_width <= width * 1.01 and 0 <= y <= y + box_height <= height * 1.01
            if not is_inside or not (box_width and box_height):
                raise ValueError(
                    f"sample {index}: box {list(each['bbox'])} (x, y, width, height) is not inside its image of "
                    f"{width} x {height} pixels"
                )
            label = self._class(index, each["category"]) if "category" in self.fields else int(row["label"])
            drawn[round(y) : round(y + box_height), round(x) : round(x + box_width)] = label
        return drawn

    def _class(self, index: int, category: Any) -> int:
        names = getattr(self.fields["category"], "names", None) or getattr(
            getattr(self.fields["category"], "feature", None), "names", None
        )
        name = names[category] if names and not isinstance(category, str) else category
        if isinstance(name, str):
            if name not in self.class_names:
                raise ValueError(f"sample {index}: a box of {name!r}, which is no class of the data")
            return self.class_names.index(name)
        return int(name)


def kept_scores(
    annotator: Annotator,
    wholes: Any,
    folder: Path,
    facts: dict[str, Any],
    top_k: int,
    loader_options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best classes of each position of every image: scores (images, k, rows, columns) fp16 and classes int32, from
    `folder` or computed and left there.

    Args:
        annotator: on the device it is to run on.
        wholes: items with `pixel_values`, the whole images at the annotator's size.
        facts: what the images are: the data's fingerprint.

    Raises:
        ValueError: the folder holds those of other images or of another annotator.
    """
    path, found = folder / FILE, digest_of(annotator, {**facts, "top_k": top_k})
    if path.is_file():
        return _load(path, found)
    device, parts = annotator.mean.device, []
    for batch in torch.utils.data.DataLoader(wholes, **loader_options, generator=torch.Generator()):
        with torch.inference_mode():
            probabilities = annotator(batch["pixel_values"].to(device).float()).float().softmax(1)
        parts.append([each.cpu() for each in probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)])
    scores = torch.cat([scores.half() for scores, _ in parts])
    classes = torch.cat([classes.int() for _, classes in parts])
    write_atomically(path, save({"scores": scores, "classes": classes}, {"digest": found}))
    return scores, classes


def _load(path: Path, expected: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            if (opened.metadata() or {}).get("digest") != expected:
                raise ValueError(
                    f"--token_label_cache_dir {str(path.parent)!r} holds labels of other images, of another annotator "
                    "or of another --token_label_top_k: give another folder"
                )
            return opened.get_tensor("scores"), opened.get_tensor("classes")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is made anew") from error


class WholeImages:
    """Transform of whole images to a size, for `ImageView`."""

    def __init__(self, size: tuple[int, int], interpolation: Any):
        self.size, self.interpolation = list(size), interpolation

    def __call__(self, images: Sequence[torch.Tensor], keys: Sequence[Any]) -> list[torch.Tensor]:
        return [F.resize(image, self.size, interpolation=self.interpolation, antialias=True) for image in images]
