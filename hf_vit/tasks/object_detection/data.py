"""Annotated images as the splits of a run, checked, and what was found in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from hf_vit.files import digest
from hf_vit.sources import limit_samples, named_splits, split_off_validation
from hf_vit.tasks.object_detection.arguments import ObjectDataArguments
from hf_vit.tasks.object_detection.scenes import draw_scenes
from hf_vit.tasks.object_detection.shapes import draw_shapes
from hf_vit.vision.annotations.checks import CheckedImages, check
from hf_vit.vision.annotations.load import load_annotated_images
from hf_vit.vision.annotations.rows import AnnotatedImages
from hf_vit.vision.decoding import encoded
from hf_vit.words import counted

BUILT_IN: dict[str, Callable[[], AnnotatedImages]] = {"shapes": draw_shapes, "scenes": draw_scenes}
_FINGERPRINT_IMAGES = 256
NO_CATEGORY = -1  # stands for the number of a class that the data lacks


@dataclass
class AnnotatedData:
    """The splits of a run; see `Task.data`.

    Args:
        checked: all splits of the source, and the reports of them.
    """

    checked: CheckedImages
    splits: dict[str, Dataset] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        return self.checked.class_names

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the run's record."""
        found = self.checked
        return {
            "name": found.name,
            "revision": found.revision,
            "license": found.license,
            "format": found.format,
            "class_names": found.class_names,
            "category_ids": found.category_ids,
            "stuff": [name for name, is_thing in zip(found.class_names, found.is_thing) if not is_thing],
            "checks": {split: dataclasses.asdict(report) for split, report in found.reports.items()},
            "splits": {split: self._described(dataset) for split, dataset in self.splits.items()},
        }

    def _described(self, split: Dataset) -> dict[str, Any]:
        categories = [category for row in split["objects"] for category in row["category"]]
        return {
            "num_examples": len(split),
            "class_counts": np.bincount(np.asarray(categories, dtype=int), minlength=len(self.class_names)).tolist(),
            "fingerprint": fingerprint(split),
        }

    def summary(self) -> list[str]:
        """Say what was found in each split, in words, where there is something to say."""
        lines = []
        for split, report in self.checked.reports.items():
            told = {
                "clamped at the border": report.clamped,
                "dropped without an area": report.dropped,
                "dropped as duplicates": report.duplicates,
                "crowds left out": report.crowd,
            }
            images = {
                "images without objects": report.empty,
                "images of another size than annotated": report.size_differs,
                "images turned as EXIF says": report.exif_turned,
            }
            found = [f"{count:,} {text}" for text, count in {**told, **images}.items() if count]
            objects = f"{counted(report.objects, 'objects')} in {counted(report.images, 'images')}"
            lines.append("; ".join([f"{split}: {objects}, at most {report.max_objects} in one", *found]))
        return lines


def fingerprint(split: Dataset) -> str:
    """A digest of the content, the same on every machine: all objects and up to 256 evenly spaced encoded images."""
    spaced = np.unique(np.linspace(0, len(split) - 1, _FINGERPRINT_IMAGES).astype(int))
    images = (encoded(split[int(index)]["image"]) for index in spaced)
    return digest([repr(split["objects"][:]).encode(), *images])[:16]


def load_annotated(arguments: ObjectDataArguments, *, needs_masks: bool = False) -> CheckedImages:
    """The data set of `arguments`, checked.

    Raises:
        ValueError: no format that is known, or annotations that cannot train; see `annotations.checks.check`; or they
            have no masks, where masks are needed.
    """
    name = arguments.dataset_name or ""
    if name in BUILT_IN:
        return _with_masks(check(BUILT_IN[name](), needs_masks=needs_masks), needs_masks)
    source = load_annotated_images(
        name,
        arguments.dataset_config_name,
        revision=arguments.dataset_revision,
        image_column=arguments.image_column_name,
        box_format=arguments.box_format,
        class_names=arguments.class_names,
    )
    return _with_masks(check(source, needs_masks=needs_masks), needs_masks)


def _with_masks(checked: CheckedImages, needs_masks: bool) -> CheckedImages:
    if needs_masks and not checked.has_masks:
        raise ValueError(
            f"--dataset_name {checked.name!r} has boxes alone ({checked.format}), and --task image_segmentation needs "
            "masks; train --task object_detection on it"
        )
    return checked


def load_annotated_splits(arguments: ObjectDataArguments, seed: int, *, needs_masks: bool = False) -> AnnotatedData:
    """The splits of a run; `seed` decides the validation split where one is made.

    Raises:
        ValueError: as `load_annotated`, or there is no train split, or nothing to evaluate.
    """
    checked = load_annotated(arguments, needs_masks=needs_masks)
    data = AnnotatedData(checked, named_splits(checked.splits, checked.name))
    split_off_validation(data.splits, arguments, seed)
    limit_samples(data.splits, arguments, seed)
    return data


def load_annotated_split(
    arguments: ObjectDataArguments, split: str, class_names: list[str], *, needs_masks: bool = False
) -> AnnotatedData:
    """One split for a model of these classes, with the model's indices.

    Raises:
        ValueError: there is no such split, or it has categories that the model does not know.
    """
    checked = load_annotated(arguments, needs_masks=needs_masks)
    if split not in checked.splits:
        raise ValueError(f"--split {split!r} is not in the data; its splits: {', '.join(checked.splits)}")
    unknown = [name for name in checked.class_names if name not in class_names]
    if unknown:
        raise ValueError(f"the data has categories that the model does not know: {', '.join(unknown[:10])}")
    index_of = [class_names.index(name) for name in checked.class_names]

    def renumber(row: dict[str, Any]) -> dict[str, Any]:
        return {"objects": {**row["objects"], "category": [index_of[i] for i in row["objects"]["category"]]}}

    found = checked.splits[split]
    if index_of != list(range(len(index_of))):
        found = found.map(renumber, features=found.features)
    ids = dict(zip(checked.class_names, checked.category_ids))
    things = dict(zip(checked.class_names, checked.is_thing))
    renumbered = dataclasses.replace(
        checked,
        class_names=class_names,
        category_ids=[ids.get(name, NO_CATEGORY) for name in class_names],
        is_thing=[things.get(name, True) for name in class_names],
        splits={split: found},
        reports={split: checked.reports[split]},
    )
    data = AnnotatedData(renumbered, {split: found})
    limit_samples(data.splits, arguments, seed=0)
    return data
