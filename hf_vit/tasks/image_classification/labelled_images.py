"""Labelled images in memory and what is told of them: their numbers, classes and fingerprints.

Shapes: C classes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage

from hf_vit.files import digest
from hf_vit.vision.decoding import encoded, num_levels
from hf_vit.vision.folders import Unused
from hf_vit.words import listed

_FINGERPRINT_IMAGES = 256
MOST_NAMED = 100  # files in one message
_MOST_CLASSES = 30  # whose images are told


@dataclass
class LabelledImages:
    """The splits of a data set with two columns, `image` (undecoded) and `label` (class index).

    `bad_samples` counts the images left out of each of the source's splits; `unused` names the files that are not
    used, by the reason, of those that were read from a folder.
    """

    name: str
    revision: str | None
    license: str | None
    image_column: str
    label_column: str
    class_names: list[str]
    splits: dict[str, Dataset]
    bad_samples: dict[str, int] = field(default_factory=dict)
    unused: dict[str, Unused] = field(default_factory=dict)
    is_multi_label: bool = False

    def labels(self, split: str) -> np.ndarray:
        """Class indices, (num_examples,); of several labels an image 1, 0 or -1 of each class, (num_examples, C)."""
        column = self.splits[split].select_columns(["label"])
        if self.is_multi_label:
            return np.asarray(column.with_format("numpy")["label"][:], dtype=np.int64)
        return column.with_format("arrow")[:]["label"].to_numpy().astype(np.int64)  # in a quarter of numpy's time

    def class_counts(self, split: str) -> np.ndarray:
        """Images of each class, (C,)."""
        if self.is_multi_label:
            return (self.labels(split) == 1).sum(axis=0)
        return np.bincount(self.labels(split), minlength=len(self.class_names))

    def missing(self) -> str:
        """The classes of which a split has no image, of each split that lacks some: they are not measured there."""
        found = []
        for split in self.splits:
            counts = self.class_counts(split)
            if names := [self.class_names[index] for index in np.flatnonzero(counts == 0)]:
                found.append(f"{split} has no image of {listed(names, MOST_NAMED)}")
        return "; ".join(found)

    def summary(self) -> str:
        """The classes with their numbers of images in each split, of many classes the smallest and the largest."""
        found, is_long = [], len(self.class_names) > _MOST_CLASSES
        for split in self.splits:
            counts = self.class_counts(split)
            order = [int(counts.argmin()), int(counts.argmax())] if is_long else range(len(counts))
            found.append(f"{split} " + ", ".join(f"{self.class_names[index]} {counts[index]:,}" for index in order))
        return f"{len(self.class_names):,}{', smallest and largest' if is_long else ''}: " + "; ".join(found)

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the run's record."""
        splits = {
            split: {
                "num_examples": len(dataset),
                "class_counts": self.class_counts(split).tolist(),
                "fingerprint": fingerprint(dataset, self.labels(split)),
            }
            for split, dataset in self.splits.items()
        }
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        origin: dict[str, Any] = {"name": self.name, "revision": self.revision, "license": self.license}
        origin["bad_samples"] = self.bad_samples
        origin["unused_files"] = {
            split: {reason: len(names) for reason, names in found.items()}
            for split, found in self.unused.items()
            if found
        }
        origin["has_deep_samples"] = any(map(has_deep_samples, self.splits.values()))
        return {**origin, **columns, "class_names": self.class_names, "splits": splits}


def _spaced_images(dataset: Dataset) -> Iterator[dict[str, Any] | None]:
    for index in np.unique(np.linspace(0, len(dataset) - 1, _FINGERPRINT_IMAGES).astype(int)):
        yield dataset[int(index)]["image"]


def fingerprint(dataset: Dataset, labels: np.ndarray) -> str:
    """A digest of the content, the same on every machine: all labels and up to 256 evenly spaced encoded images."""
    return digest([labels.tobytes(), *map(encoded, _spaced_images(dataset))])[:16]


def has_deep_samples(dataset: Dataset) -> bool:
    """Whether one of up to 256 evenly spaced images has samples of more than 8 bits in one channel."""
    for image in _spaced_images(dataset):
        # What is no image is told elsewhere.
        with contextlib.suppress(Exception), PILImage.open(io.BytesIO(encoded(image))) as opened:
            if num_levels(opened) > 256:
                return True
    return False
