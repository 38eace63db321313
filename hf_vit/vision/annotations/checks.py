"""From annotations as people have them to rows that train: everything that was mended, dropped or odd is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from pycocotools import mask as coco_masks

from hf_vit.vision.annotations.rows import AnnotatedImages, AnnotatedSplit, Annotation, Category, encode_mask
from hf_vit.vision.annotations.sizes import ImageSize, image_size, turned_box
from hf_vit.words import listed

# More boxes than this part outside of their images are no slips: another box format, or other images.
MAX_PART_OUTSIDE = 0.01
MIN_SIDE = 1.0  # pixels; a thinner box has no area that a model could find
MAX_NAMED = 5

OBJECTS = {
    "bbox": List(List(Value("float64"), length=4)),
    "category": List(Value("int64")),
    "area": List(Value("float64")),
    "iscrowd": List(Value("bool")),
    "segmentation": List(Value("string")),  # counts of run lengths; empty where there is no mask
}
FEATURES = {
    "image_id": Value("int64"),
    "file_name": Value("string"),
    "height": Value("int32"),
    "width": Value("int32"),
    "objects": OBJECTS,
}


@dataclass
class SplitReport:
    """Counts of one split, before training.

    Args:
        clamped: boxes that reached over the image's border, by how little ever.
        dropped: boxes without an area inside of their image.
        duplicates: objects that another of the same category covers exactly, which are dropped.
        crowd: groups, which neither train nor score.
        empty: images without an object.
        size_differs: images of another size than their annotations say, whose boxes were scaled to it.
        exif_turned: images whose annotations are of the pixels before EXIF's orientation, and were turned with them.
        small: objects of less than 32 x 32 pixels.
        max_objects: the most that an image has.
    """

    images: int = 0
    objects: int = 0
    clamped: int = 0
    dropped: int = 0
    duplicates: int = 0
    crowd: int = 0
    empty: int = 0
    size_differs: int = 0
    exif_turned: int = 0
    small: int = 0
    max_objects: int = 0
    class_counts: list[int] = field(default_factory=list)


@dataclass
class CheckedImages:
    """The splits of a data set with the columns `image` (not decoded) and those of `FEATURES`; `objects.category` is
    dense, and `category_ids` holds the source's own number of each.

    Boxes (x, y, width, height) and masks are those of the image as it is shown, EXIF's orientation applied.
    """

    name: str
    format: str
    revision: str | None
    license: str | None
    class_names: list[str]
    category_ids: list[int]
    is_thing: list[bool]
    has_masks: bool
    splits: dict[str, Dataset]
    reports: dict[str, SplitReport]


def check(source: AnnotatedImages, *, needs_masks: bool = False) -> CheckedImages:
    """Splits of `source` with every annotation checked against its image.

    Args:
        needs_masks: an object without a mask is a fault, where others have some.

    Raises:
        ValueError: all faults of the data that no count can tell, in one message: unknown categories, boxes that are
            no numbers, more boxes outside than slips explain, other categories in one split, nothing to train on.
    """
    categories, faults = _common_categories(source)
    splits, reports = {}, {}
    index_of = {category.name: index for index, category in enumerate(categories)}
    for name, split in source.splits.items():
        to_index = {each.id: index_of[each.name] for each in source.categories[name] if each.name in index_of}
        checker = _Checker(name, to_index, len(categories), needs_masks=needs_masks and source.has_masks)
        splits[name] = checker.run(split)
        reports[name] = checker.report
        faults += checker.faults()
    if "train" in reports and not reports["train"].objects:
        faults.append("the train split holds no objects")
    if faults:
        raise ValueError(f"{source.name}: " + "; ".join(faults))
    return CheckedImages(
        name=source.name,
        format=source.format,
        revision=source.revision,
        license=source.license,
        class_names=[category.name for category in categories],
        category_ids=[category.id for category in categories],
        is_thing=[category.is_thing for category in categories],
        has_masks=source.has_masks,
        splits=splits,
        reports=reports,
    )


def _common_categories(source: AnnotatedImages) -> tuple[list[Category], list[str]]:
    """Categories of the first split, which the others must have by name, whatever their numbers there."""
    first, *others = source.categories
    reference = list(source.categories[first])
    names = [category.name for category in reference]
    faults = []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        faults.append(f"several categories are called {', '.join(map(repr, twice))}")
    for split in others:
        unknown = sorted({category.name for category in source.categories[split]} - set(names))
        if unknown:
            faults.append(f"the {split} split has categories that the {first} split lacks: {', '.join(unknown[:10])}")
    return reference, faults


class _Checker:
    """One split on its way to rows."""

    def __init__(self, name: str, to_index: Mapping[int, int], num_classes: int, *, needs_masks: bool):
        self.name = name
        self.to_index = to_index
        self.needs_masks = needs_masks
        self.report = SplitReport(class_counts=[0] * num_classes)
        self.num_boxes = 0
        self.outside: list[str] = []
        self.unknown: dict[Any, int] = {}
        self.malformed: list[str] = []
        self.maskless: list[str] = []

    def faults(self) -> list[str]:
        """Sentences about what cannot be counted away."""
        found = []
        if self.unknown:
            ids = ", ".join(f"{each!r} ({count})" for each, count in list(self.unknown.items())[:MAX_NAMED])
            found.append(f"the {self.name} split has objects of categories that its list lacks: {ids}")
        if self.malformed:
            found.append(f"the {self.name} split has boxes that are no boxes: {listed(self.malformed, MAX_NAMED)}")
        if self.num_boxes and len(self.outside) > MAX_PART_OUTSIDE * self.num_boxes:
            found.append(
                f"{len(self.outside)} of {self.num_boxes} boxes of the {self.name} split lie outside of their images, "
                f"as another box format would have it: {listed(self.outside, MAX_NAMED)}"
            )
        if self.maskless:
            found.append(
                f"the {self.name} split has objects without a mask beside others: {listed(self.maskless, MAX_NAMED)}"
            )
        return found

    def run(self, split: AnnotatedSplit) -> Dataset:
        images = split.images.select_columns(["image"]).cast_column("image", Image(decode=False))
        columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
        for index, (image, annotated) in enumerate(zip(images["image"], split.annotations)):
            size = image_size(image, index)
            path = (image or {}).get("path") or ""
            where = split.file_names[index] or path.replace("\\", "/").rpartition("/")[2] or f"sample {index}"
            objects = self._objects(annotated, split.sizes[index], size, where)
            columns["image_id"].append(split.image_ids[index])
            columns["file_name"].append(split.file_names[index] or where)
            columns["height"].append(size.shown[0])
            columns["width"].append(size.shown[1])
            columns["objects"].append(objects)
        rows = Dataset.from_dict(columns, Features(FEATURES))
        for name in FEATURES:
            images = images.add_column(name, rows[name][:], feature=FEATURES[name])
        return images

    def _objects(
        self, annotations: Sequence[Annotation], told: tuple[int, int] | None, size: ImageSize, where: str
    ) -> dict[str, list[Any]]:
        """Objects of one image that are left, in its shown pixels."""
        report = self.report
        report.images += 1
        turned = told is not None and told == size.stored and told != size.shown
        report.exif_turned += turned
        frame = size.stored if turned else size.shown
        scale = (1.0, 1.0) if told is None else (frame[0] / told[0], frame[1] / told[1])
        report.size_differs += scale != (1.0, 1.0)
        kept: dict[str, list[Any]] = {name: [] for name in OBJECTS}
        seen: set[tuple[Any, ...]] = set()
        for each in annotations:
            if each.category_id not in self.to_index:
                self.unknown[each.category_id] = self.unknown.get(each.category_id, 0) + 1
                continue
            mask = _fitted_mask(each.segmentation, frame)
            box = self._box(each, mask, scale, frame, where)
            if box is None:
                continue
            if self.needs_masks and mask is None:
                self.maskless.append(where)
                continue
            category = self.to_index[each.category_id]
            if turned:
                box, mask = turned_box(box, size), _turned_mask(mask, size)
            identity = (category, *(round(side, 3) for side in box), mask and mask["counts"], each.is_crowd)
            if identity in seen:
                report.duplicates += 1
                continue
            seen.add(identity)
            self._keep(kept, category, box, mask, each, scale)
        report.empty += not kept["bbox"]
        report.max_objects = max(report.max_objects, len(kept["bbox"]) - sum(kept["iscrowd"]))
        return kept

    def _keep(
        self,
        kept: dict[str, list[Any]],
        category: int,
        box: tuple[float, float, float, float],
        mask: Any,
        each: Annotation,
        scale: tuple[float, float],
    ) -> None:
        report = self.report
        area = float(coco_masks.area(mask)) if mask is not None else box[2] * box[3]
        if each.area is not None and mask is None and not each.is_crowd:
            area = float(each.area) * scale[0] * scale[1]  # of the object, which may be less than its box
        kept["bbox"].append(list(box))
        kept["category"].append(category)
        kept["area"].append(area)
        kept["iscrowd"].append(each.is_crowd)
        kept["segmentation"].append(mask["counts"].decode() if mask is not None else "")
        if each.is_crowd:
            report.crowd += 1
            return
        report.objects += 1
        report.class_counts[category] += 1
        report.small += area < 32**2

    def _box(
        self,
        each: Annotation,
        mask: Any,
        scale: tuple[float, float],
        frame: tuple[int, int],
        where: str,
    ) -> tuple[float, float, float, float] | None:
        """The box in the pixels of its image, clamped to it; None of one that has no area there."""
        given: Any = each.bbox
        if given is None:
            if mask is None:
                self.malformed.append(f"{where} (neither box nor mask)")
                return None
            given = coco_masks.toBbox(mask).tolist()
        elif not _is_box(given):
            self.malformed.append(f"{where} {given!r}")
            return None
        else:
            given = [given[0] * scale[1], given[1] * scale[0], given[2] * scale[1], given[3] * scale[0]]
        self.num_boxes += 1
        height, width = frame
        x, y, w, h = given
        left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        over = max(-x, -y, x + w - width, y + h - height)
        if over > MIN_SIDE or w < 0 or h < 0:
            self.outside.append(f"{where} {[round(side, 1) for side in given]}")
        if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
            self.report.dropped += 1
            return None
        self.report.clamped += over > 1e-6 * max(width, height)
        return (left, top, right - left, bottom - top)


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(not isinstance(side, str) and math.isfinite(side) for side in box)
    except TypeError:
        return False


def _fitted_mask(mask: Any, frame: tuple[int, int]) -> dict[str, Any] | None:
    """The mask at the size of its image, None if it has no pixel."""
    if mask is None or not coco_masks.area(mask):
        return None
    if tuple(mask["size"]) == frame:
        return mask
    decoded = coco_masks.decode(mask)
    rows = (np.arange(frame[0]) + 0.5) * decoded.shape[0] / frame[0]
    columns = (np.arange(frame[1]) + 0.5) * decoded.shape[1] / frame[1]
    return encode_mask(decoded[rows.astype(int)[:, None], columns.astype(int)[None]])


def _turned_mask(mask: Any, size: ImageSize) -> dict[str, Any] | None:
    if mask is None:
        return None
    decoded = coco_masks.decode(mask)
    if size.orientation in (2, 3, 7, 8):
        decoded = decoded[:, ::-1]
    if size.orientation in (3, 4, 6, 7):
        decoded = decoded[::-1]
    return encode_mask(decoded.T if size.orientation >= 5 else decoded)
