"""The columns of images and labels in a data set, and what its labels mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List


def find_image_column(dataset: Dataset | IterableDataset, wanted: str | None) -> str:
    """The column of `Image` type, or the one named.

    Raises:
        ValueError: there is none, or more than one.
    """
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"--image_column_name {wanted!r} is not a column; columns: {dataset.column_names}")
        return wanted
    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if len(found) != 1:
        problem = "no column holds images" if not found else f"several columns hold images, {found}"
        raise ValueError(f"{problem}: name one with --image_column_name; columns: {dataset.column_names}")
    return found[0]


def find_label_column(dataset: Dataset | IterableDataset, wanted: str | None, image_column: str) -> str:
    """The column of `ClassLabel` type, else the one called label or labels, or the one named.

    Raises:
        ValueError: there is none, or more than one, or it holds several labels an image.
    """
    if wanted is not None:
        if wanted not in dataset.column_names or wanted == image_column:
            raise ValueError(f"--label_column_name {wanted!r} is not a label column; columns: {dataset.column_names}")
        return _single_labels(dataset, wanted)
    found = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    found = found or [name for name in ("label", "labels") if name in dataset.column_names]
    if len(found) != 1:
        problem = "no column holds class labels" if not found else f"several columns hold class labels, {found}"
        raise ValueError(f"{problem}: name one with --label_column_name; columns: {dataset.column_names}")
    return _single_labels(dataset, found[0])


def _single_labels(dataset: Dataset | IterableDataset, column: str) -> str:
    if isinstance(dataset.features[column], (List, LargeList)):
        raise ValueError(
            f"column {column!r} holds a list of labels for each image, and this run takes one label an image: give "
            "--problem_type multi_label_classification, or name another column with --label_column_name"
        )
    return column


def find_class_names(
    dataset: Dataset | IterableDataset, label_column: str, given_names: Sequence[str] | None
) -> list[str]:
    """Names in the order of their indices: the column's own, those given, or the sorted distinct values.

    Raises:
        ValueError: the labels are neither integers nor strings, or a stream does not say its classes.
    """
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if given_names is not None:
        return list(given_names)
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"column {label_column!r} of the stream does not name its classes: give --class_names")
    values = dataset.unique(label_column)
    if not all(isinstance(value, (int, str)) for value in values):
        raise ValueError(f"column {label_column!r} must hold integers or strings, found {feature}")
    return [str(value) for value in sorted(values)]


def label_namer(feature: Any, given_names: Sequence[str] | None) -> Callable[[Any], str]:
    """Gives a label's class by name: a `ClassLabel`'s own, the one given for an integer, or the label as text."""
    names: Sequence[str] = ()
    if isinstance(feature, ClassLabel):
        names = feature.names
    elif given_names is not None and "int" in getattr(feature, "dtype", ""):
        names = given_names
    by_label = dict(enumerate(names))
    return lambda label: by_label.get(label, str(label))
