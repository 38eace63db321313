"""Annotated images as batches for a detector: views with boxes and masks that follow them.

Boxes of `labels` are (centre x, centre y, width, height) in parts of the canvas, as DETR has them (arXiv 2005.12872).

Shapes: B batch, n objects of an image, H and W the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from pycocotools import mask as coco_masks
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers.image_utils import pil_torch_interpolation_mapping

from hf_vit.models.image_processing_hf_vit import centred, resized
from hf_vit.sample_keys import SampleKey, seed_of
from hf_vit.vision.decoding import decode_pixels
from hf_vit.vision.object_augmentation import ObjectAugmentationArguments
from hf_vit.vision.processors import InputFormat


class KeepCentres(v2.Transform):
    """Leaves out the objects whose centres lie outside of the canvas, and those without an area in it."""

    def forward(self, *inputs: Any) -> Any:
        image, target = inputs
        height, width = image.shape[-2:]
        x, y, w, h = target["boxes"].unbind(-1)  # (n,) each
        inside = (x + w / 2 >= 0) & (x + w / 2 < width) & (y + h / 2 >= 0) & (y + h / 2 < height)
        boxes = v2.functional.clamp_bounding_boxes(target["boxes"])
        inside &= (boxes[:, 2] >= 1) & (boxes[:, 3] >= 1)
        kept = {name: value[inside] for name, value in target.items() if name != "boxes"}
        kept["boxes"] = tv_tensors.wrap(boxes[inside], like=boxes)
        if "masks" in kept:
            kept["masks"] = tv_tensors.wrap(kept["masks"], like=target["masks"])
        return image, kept


class OntoCanvas(v2.Transform):
    """Brings an image onto the canvas (height, width) as the detector's processor does: stretched, or whole, in the
    middle of borders of the mean colour ("border")."""

    def __init__(self, canvas: tuple[int, int], crop_mode: str, interpolation: Any, fill: Sequence[float]):
        super().__init__()
        self.canvas = canvas
        self.crop_mode = crop_mode
        self.interpolation = interpolation
        self.fill = list(fill)

    def forward(self, *inputs: Any) -> Any:
        height, width = inputs[0].shape[-2:]
        inner = resized((height, width), self.canvas, self.crop_mode)
        (_, rows), (_, columns) = (centred(*sides) for sides in zip(inner, self.canvas))
        border = [columns.start, rows.start, self.canvas[1] - columns.stop, self.canvas[0] - rows.stop]
        fill: dict[Any, Any] = {tv_tensors.Image: self.fill, tv_tensors.Mask: 0}
        steps = [v2.Resize(inner, interpolation=self.interpolation, antialias=True), v2.Pad(border, fill=fill)]
        return v2.Compose(steps[: 2 if any(border) else 1])(*inputs)


class Zoom(v2.Transform):
    """Scales an image by a factor in [low, high]. torchvision's `ScaleJitter` takes height for width, and so shrinks
    what is no square."""

    def __init__(self, low: float, high: float, interpolation: Any):
        super().__init__()
        self.low = low
        self.high = high
        self.interpolation = interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = float(torch.empty(()).uniform_(self.low, self.high))
        return {"size": [max(1, round(side * factor)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        options = {"interpolation": self.interpolation, "antialias": True}
        return self._call_kernel(v2.functional.resize, inpt, params["size"], **options)


class ObjectViews(torch.utils.data.Dataset):
    """Samples of a split as tensors; the key decides the view.

    Items hold `pixel_values` (3, H, W) uint8, `labels`, a dictionary of `class_labels` (n,), `boxes` (n, 4) and, where
    there are masks, `masks` (n, H / stride, W / stride), and `sample_key` (3,) int64. A plain integer index stands for
    `SampleKey(0, index, 0)`. Crowds are left out.

    Args:
        split: rows as `annotations.checks.CheckedImages` has them.
        processor: gives canvas, resampling and the mean colour that fills borders.
        augmentation: random views; the image as the processor shows it without.
        multiple_of: of a canvas' sides, where it is drawn.
        mask_stride: side of the squares of pixels over which masks are averaged (fp32); with 1 they are bool.
    """

    def __init__(
        self,
        split: Dataset,
        processor: Any,
        *,
        has_masks: bool,
        augmentation: ObjectAugmentationArguments | None = None,
        seed: int = 0,
        multiple_of: int = 1,
        mask_stride: int = 1,
    ):
        self.split = split
        self.has_masks = has_masks
        self.augmentation = augmentation
        self.seed = seed
        self.multiple_of = multiple_of
        self.mask_stride = mask_stride
        form = InputFormat.of(processor)
        self.size = form.size
        self.interpolation = pil_torch_interpolation_mapping[form.resample]
        self.fill = [255 * mean for mean in form.mean]
        self.crop_mode = getattr(processor, "crop_mode", "squash")

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[dict[str, Any]]:
        chosen = [key if isinstance(key, tuple) else SampleKey(0, key, 0) for key in keys]
        rows = self.split[[key.index for key in chosen]]
        steps = v2.Compose(self._steps(self._canvas(chosen[0])))
        items = []
        with torch.random.fork_rng(devices=[]):
            for image, objects, key in zip(rows["image"], rows["objects"], chosen):
                pixels = tv_tensors.Image(decode_pixels(image, key.index))
                target = self._target(objects, (pixels.shape[-2], pixels.shape[-1]))
                torch.default_generator.manual_seed(seed_of(self.seed, *key))
                pixels, target = steps(pixels, target)
                items.append(self._item(pixels, target, key))
        return items

    def _canvas(self, key: SampleKey) -> tuple[int, int]:
        """The canvas of a batch, decided by its first sample."""
        low, high = (1.0, 1.0) if self.augmentation is None else self.augmentation.canvas_scale
        if low == high == 1:
            return self.size
        scale = np.random.default_rng(seed_of(self.seed, *key)).uniform(low, high)
        height, width = (max(1, round(side * scale / self.multiple_of)) * self.multiple_of for side in self.size)
        return height, width

    def _steps(self, canvas: tuple[int, int]) -> list[Any]:
        fit: list[Any] = [OntoCanvas(canvas, self.crop_mode, self.interpolation, self.fill)]
        given = self.augmentation
        if given is None:
            return [*fit, KeepCentres()]
        steps = []
        if given.photometric_distort_prob:
            steps.append(v2.RandomPhotometricDistort(p=given.photometric_distort_prob))
        if given.horizontal_flip_prob:
            steps.append(v2.RandomHorizontalFlip(given.horizontal_flip_prob))
        if given.vertical_flip_prob:
            steps.append(v2.RandomVerticalFlip(given.vertical_flip_prob))
        low, high = given.scale_jitter
        if (low, high) != (1, 1):
            fill: dict[Any, Any] = {tv_tensors.Image: self.fill, tv_tensors.Mask: 0}
            fit.append(Zoom(low, high, self.interpolation))
            fit.append(v2.RandomCrop(canvas, pad_if_needed=True, fill=fill))
        return [*fit, *steps, KeepCentres()]

    def _target(self, objects: dict[str, list[Any]], size: tuple[int, int]) -> dict[str, Any]:
        """Objects of an image of a size (height, width), crowds left out."""
        counted = [index for index, is_crowd in enumerate(objects["iscrowd"]) if not is_crowd]
        boxes = torch.tensor([objects["bbox"][index] for index in counted], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=size),
            "class_labels": torch.tensor([objects["category"][index] for index in counted], dtype=torch.int64),
        }
        if self.has_masks:
            target["masks"] = tv_tensors.Mask(decode_masks([objects["segmentation"][i] for i in counted], size))
        return target

    def _item(self, pixels: torch.Tensor, target: dict[str, torch.Tensor], key: SampleKey) -> dict[str, Any]:
        height, width = pixels.shape[-2:]
        x, y, w, h = target["boxes"].as_subclass(torch.Tensor).unbind(-1)
        labels = {
            "class_labels": target["class_labels"],
            "boxes": torch.stack([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], dim=-1),
        }
        if "masks" in target:
            masks = target["masks"].as_subclass(torch.Tensor)
            is_whole = self.mask_stride == 1
            labels["masks"] = masks.bool() if is_whole else F.avg_pool2d(masks.float(), self.mask_stride)
        return {
            "pixel_values": pixels.as_subclass(torch.Tensor),
            "labels": labels,
            "sample_key": torch.tensor(key),
        }


def decode_masks(counts: Sequence[str], size: tuple[int, int]) -> torch.Tensor:
    """Run lengths of masks of one image (height, width) as (n, height, width) uint8."""
    if not counts:
        return torch.zeros((0, *size), dtype=torch.uint8)
    decoded = coco_masks.decode([{"size": list(size), "counts": each.encode()} for each in counts])
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: `pixel_values` (B, 3, H, W), `labels`, a list of B dictionaries, and `sample_key` (B, 3)."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [item["labels"] for item in items],
        "sample_key": torch.stack([item["sample_key"] for item in items]),
    }
