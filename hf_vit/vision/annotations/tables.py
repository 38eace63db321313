"""Data sets of `datasets` with a column of objects, as one dictionary of lists or a list of dictionaries, and masks in
a map of instances or of panoptic segments beside it.

The columns that are understood, each with the names that data sets of the Hub give them:

- objects: `bbox`, `category` (or `category_id`, `label`, `class_id`), and optionally `area`, `iscrowd` (or
  `is_crowd`), `segmentation`;
- a map of instances, an image whose value 0 is background and n the n-th object;
- a map of panoptic segments, an image of ids R + 256 G + 65536 B, beside `segments_info` (`id`, `category_id`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image

from hf_vit.sources import revision_of
from hf_vit.vision.annotations.coco import panoptic_segments
from hf_vit.vision.annotations.rows import (
    AnnotatedImages,
    AnnotatedSplit,
    Annotation,
    Category,
    encode_mask,
    polygons_to_mask,
)
from hf_vit.vision.decoding import open_stored

BOX_FORMATS = ("coco", "pascal_voc", "yolo")
_CATEGORY_NAMES = ("category", "category_id", "label", "labels", "class_id", "categories")
_CROWD_NAMES = ("iscrowd", "is_crowd")
_INSTANCE_NAMES = ("instances", "instance_map", "instance_mask", "instance_masks")
_PANOPTIC_NAMES = ("panoptic", "panoptic_map", "panoptic_mask", "segmentation", "annotation", "mask", "label")


def read(
    found: Mapping[str, Dataset],
    name: str,
    *,
    image_column: str,
    box_format: str = "coco",
    class_names: Sequence[str] | None = None,
) -> AnnotatedImages:
    """The data set of splits with columns as above.

    Args:
        box_format: "coco": (x, y, width, height) in pixels; "pascal_voc": (left, top, right, bottom) in pixels;
            "yolo": (centre x, centre y, width, height) in parts of the image.
        class_names: names of the categories by number, where the data does not hold them.

    Raises:
        ValueError: no column of objects or segments, or what it holds is not understood.
    """
    splits, categories, has_masks = {}, {}, False
    for split, dataset in found.items():
        reader = _Reader(dataset, image_column, box_format, class_names)
        splits[split] = reader.split()
        categories[split] = reader.categories()
        has_masks |= reader.has_masks
    info = next(iter(found.values())).info
    return AnnotatedImages(
        name=name,
        format="table",
        splits=splits,
        categories=categories,
        has_masks=has_masks,
        license=info.license or None,
        revision=revision_of(info),
    )


class _Reader:
    """One split."""

    def __init__(self, dataset: Dataset, image_column: str, box_format: str, class_names: Sequence[str] | None):
        self.dataset = dataset
        self.image_column = image_column
        self.box_format = box_format
        self.class_names = class_names
        features = dataset.features
        self.objects = features.get("objects")
        self.segments = features.get("segments_info")
        if self.objects is None and self.segments is None:
            raise ValueError(
                f"no column `objects` (boxes) or `segments_info` (panoptic segments); columns: {dataset.column_names}"
            )
        pictures = [key for key, value in features.items() if isinstance(value, Image) and key != image_column]
        names = _INSTANCE_NAMES if self.segments is None else _PANOPTIC_NAMES
        self.map_column = next((key for key in names if key in pictures), None)
        if self.segments is not None and self.map_column is None:
            raise ValueError(f"`segments_info` needs an image column of its map, one of {', '.join(names)}")
        self.has_masks = self.map_column is not None or "segmentation" in self._object_features()

    def _object_features(self) -> Mapping[str, Any]:
        feature = self.objects if self.objects is not None else self.segments
        inner = getattr(feature, "feature", feature)  # a list of dictionaries, else a dictionary of lists
        inner = inner[0] if isinstance(inner, list) else inner
        return {key: getattr(value, "feature", value) for key, value in dict(inner).items()}

    def _category_field(self) -> str:
        fields = self._object_features()
        found = next((name for name in _CATEGORY_NAMES if name in fields), None)
        if found is None:
            raise ValueError(f"objects have no field {', '.join(_CATEGORY_NAMES)}; fields: {', '.join(fields)}")
        return found

    def categories(self) -> list[Category]:
        """Those that the column names, that are given, or that occur."""
        field = self._category_field()
        feature = self._object_features()[field]
        if isinstance(feature, ClassLabel):
            return [Category(index, name) for index, name in enumerate(feature.names)]
        if self.class_names is not None:
            return [Category(index, name) for index, name in enumerate(self.class_names)]
        column = "objects" if self.objects is not None else "segments_info"
        rows = (_as_list(row) for row in self.dataset.select_columns([column])[:][column])
        values = sorted({each[field] for row in rows for each in row})
        if any(isinstance(value, str) for value in values):
            self._by_name: dict[Any, int] = {value: index for index, value in enumerate(values)}
            return [Category(index, str(value)) for value, index in self._by_name.items()]
        return [Category(int(value), str(value)) for value in values]

    def split(self) -> AnnotatedSplit:
        self._by_name = {}
        self.categories()
        columns = [key for key in ("objects", "segments_info", self.map_column) if key in self.dataset.column_names]
        rows = self.dataset.select_columns(columns)
        if self.map_column:
            rows = rows.cast_column(self.map_column, Image(decode=False))
        names = self.dataset.column_names
        column = {key: self.dataset[key][:] for key in ("file_name", "image_id", "height", "width") if key in names}
        count = len(self.dataset)
        known = "height" in column and "width" in column
        sizes: list[tuple[int, int] | None] = [None] * count
        if known:
            sizes = [(int(h), int(w)) for h, w in zip(column["height"], column["width"])]
        images = self.dataset.select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        if self.image_column != "image":
            images = images.rename_column(self.image_column, "image")
        return AnnotatedSplit(
            images=images,
            file_names=[str(each) for each in column.get("file_name", [""] * count)],
            sizes=sizes,
            annotations=[self._annotations(row, index, size) for index, (row, size) in enumerate(zip(rows, sizes))],
            image_ids=list(column.get("image_id", [])),
        )

    def _annotations(self, row: dict[str, Any], index: int, size: tuple[int, int] | None) -> list[Annotation]:
        picture = None
        if self.map_column:
            picture = np.asarray(open_stored(row[self.map_column], index))
            if size is not None and picture.shape[:2] != size:
                raise ValueError(
                    f"sample {index}: its map {self.map_column!r} has {picture.shape[:2]} pixels (height, width), its "
                    f"image {size}"
                )
        try:
            if self.segments is not None:
                assert picture is not None
                return panoptic_segments(picture, _as_list(row["segments_info"]))
            found = [self._annotation(each, size) for each in _as_list(row["objects"])]
            if picture is not None:
                _add_instances(found, picture)
        except ValueError as error:
            raise ValueError(f"sample {index}: {error}") from error
        return found

    def _annotation(self, each: dict[str, Any], size: tuple[int, int] | None) -> Annotation:
        category = each[self._category_field()]
        crowd = next((bool(each[name]) for name in _CROWD_NAMES if each.get(name) is not None), False)
        polygons = each.get("segmentation")
        if polygons and size is None:
            raise ValueError("polygons need the columns `height` and `width`")
        mask = polygons_to_mask(_rings(polygons), size) if polygons and size is not None else None
        box = self._box(each["bbox"], size) if each.get("bbox") is not None else None
        return Annotation(self._by_name.get(category, category), box, mask, crowd, each.get("area"))

    def _box(self, box: Sequence[float], size: tuple[int, int] | None) -> Sequence[float]:
        if self.box_format == "coco":
            return box
        a, b, c, d = box
        if self.box_format == "pascal_voc":
            return (a, b, c - a, d - b)
        if size is None:
            raise ValueError("--box_format yolo needs the columns `height` and `width`")
        height, width = size
        return ((a - c / 2) * width, (b - d / 2) * height, c * width, d * height)


def _rings(polygons: Sequence[Any]) -> Sequence[Sequence[float]]:
    return polygons if isinstance(polygons[0], Sequence) else [polygons]


def _as_list(objects: Any) -> list[dict[str, Any]]:
    """Objects one by one, from a dictionary of lists or a list of dictionaries."""
    if isinstance(objects, Mapping):
        return [dict(zip(objects, values)) for values in zip(*objects.values())]
    return list(objects or [])


def _add_instances(annotations: list[Annotation], picture: np.ndarray) -> None:
    """Give each object its part of a map (H, W) in which n marks the n-th object.

    Raises:
        ValueError: the map is no map of numbers, or it holds other instances than there are objects.
    """
    if picture.ndim != 2:
        raise ValueError(f"a map of instances has one number a pixel, found the shape {picture.shape}")
    present = np.unique(picture)
    present = present[present > 0]
    if len(present) and present.max() > len(annotations):
        raise ValueError(f"its map holds instance {present.max()}, but it has {len(annotations)} objects")
    if len(present) < len(annotations):
        missing = sorted(set(range(1, len(annotations) + 1)) - set(present.tolist()))
        raise ValueError(f"its map lacks the instances {missing[:5]} of its {len(annotations)} objects")
    for number, annotation in enumerate(annotations, start=1):
        annotation.segmentation = encode_mask(picture == number)
