"""Annotated images before they are checked: what each reader of a format gives.

Boxes are (x, y, width, height) in pixels from the top left corner, as COCO has them; a reader whose format has others
turns them into these. Masks are COCO's run lengths, `{"size": [height, width], "counts": bytes}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Image
from pycocotools import mask as coco_masks


class Category(NamedTuple):
    """A category as the source numbers and names it; things can be counted, stuff (sky, background) cannot."""

    id: int
    name: str
    is_thing: bool = True


@dataclass
class Annotation:
    """One object, or one segment of stuff.

    Args:
        category_id: as the source numbers its categories.
        bbox: (x, y, width, height) in pixels; of the mask where it is None.
        segmentation: the mask's run lengths.
        is_crowd: a group that nobody counted, which neither trains nor scores.
        area: in pixels; of the mask or the box where it is None.
    """

    category_id: int
    bbox: Sequence[float] | None = None
    segmentation: dict[str, Any] | None = None
    is_crowd: bool = False
    area: float | None = None


@dataclass
class AnnotatedSplit:
    """One split of a source, its lists in the order of the images.

    Args:
        images: one column, `image`, not decoded.
        sizes: (height, width) as the annotations say, None where they do not.
        image_ids: as the source numbers them; from 0 on where it does not.
    """

    images: Dataset
    file_names: list[str]
    sizes: list[tuple[int, int] | None]
    annotations: list[list[Annotation]]
    image_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_ids = self.image_ids or list(range(len(self.annotations)))


@dataclass
class AnnotatedImages:
    """All splits of a source, each of which may number the categories in its own way.

    Args:
        categories: those of each split.
        has_masks: whether the format gives masks, so that each object must have one.
    """

    name: str
    format: str
    splits: Mapping[str, AnnotatedSplit]
    categories: Mapping[str, Sequence[Category]]
    has_masks: bool
    license: str | None = None
    revision: str | None = None


def image_files(paths: Sequence[Any]) -> Dataset:
    """The column `image` of files that are read when they are needed."""
    features = Features({"image": Image(decode=False)})
    return Dataset.from_dict({"image": [{"path": str(path), "bytes": None} for path in paths]}, features)


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of the union of polygons [x0, y0, x1, y1, ...] in pixels of an image (height, width).

    Raises:
        ValueError: a polygon has fewer than three corners or an odd number of coordinates.
    """
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs at least three corners (x, y), found {len(polygon)} numbers")
    floats: Any = [list(map(float, each)) for each in polygons]
    merged: Any = coco_masks.merge(coco_masks.frPyObjects(floats, *size))
    return merged


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask (H, W)."""
    encoded: Any = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return encoded


def split_of(text: str) -> str | None:
    """The split that a file's or folder's name tells of: "train", "validation", "test" or none."""
    words = {"train": ("train",), "validation": ("val", "valid", "dev"), "test": ("test",)}
    lowered = text.lower()
    return next((split for split, marks in words.items() if any(mark in lowered for mark in marks)), None)
