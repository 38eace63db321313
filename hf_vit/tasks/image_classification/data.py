"""Labelled images from any `datasets` source: columns found, classes named, splits made, labels checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image
from PIL import Image as PILImage
from sklearn.model_selection import train_test_split

from hf_vit.files import digest
from hf_vit.sample_keys import SampleKey
from hf_vit.sources import (
    limit_samples,
    load_folder,
    load_source,
    named_splits,
    revision_of,
    split_off_validation,
)
from hf_vit.tasks.image_classification.arguments import DataArguments
from hf_vit.vision.bad_samples import find_bad_samples
from hf_vit.vision.columns import find_class_names, find_image_column, find_label_column, label_namer
from hf_vit.vision.decoding import decode_pixels, encoded

logger = logging.getLogger(__name__)

_FINGERPRINT_IMAGES = 256


def load_sklearn_digits() -> DatasetDict:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, in a fixed stratified 80/20 split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 -> 0..255
    features = datasets.Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in range(10)])})
    rows = train_test_split(np.arange(len(pixels)), test_size=0.2, stratify=digits.target, random_state=0)
    info = datasets.DatasetInfo(license="cc-by-4.0", features=features)  # of the UCI repository, where they are from
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(pixels[i]) for i in index], "label": digits.target[index]},
                features,
                info,
            )
            for split, index in zip(("train", "test"), rows)
        }
    )


BUILT_IN = {"sklearn_digits": load_sklearn_digits}


@dataclass
class LabelledImages:
    """The splits of a data set with two columns, `image` (undecoded) and `label` (class index).

    `bad_samples` counts the images left out of each of the source's splits.
    """

    name: str
    revision: str | None
    license: str | None
    image_column: str
    label_column: str
    class_names: list[str]
    splits: dict[str, Dataset]
    bad_samples: dict[str, int] = field(default_factory=dict)

    def labels(self, split: str) -> np.ndarray:
        """Class indices, (num_examples,)."""
        return np.asarray(self.splits[split].with_format("numpy")["label"][:], dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the run's record."""
        splits = {
            split: {
                "num_examples": len(dataset),
                "class_counts": np.bincount(self.labels(split), minlength=len(self.class_names)).tolist(),
                "fingerprint": fingerprint(dataset, self.labels(split)),
            }
            for split, dataset in self.splits.items()
        }
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        origin = {"name": self.name, "revision": self.revision, "license": self.license}
        origin["bad_samples"] = self.bad_samples
        return {**origin, **columns, "class_names": self.class_names, "splits": splits}


def fingerprint(dataset: Dataset, labels: np.ndarray) -> str:
    """A digest of the content, the same on every machine: all labels and up to 256 evenly spaced encoded images."""
    spaced = np.unique(np.linspace(0, len(dataset) - 1, _FINGERPRINT_IMAGES).astype(int))
    images = (encoded(dataset[int(index)]["image"]) for index in spaced)
    return digest([labels.tobytes(), *images])[:16]


def load_labelled_images(arguments: DataArguments, seed: int) -> LabelledImages:
    """Loads and checks the data set of `arguments`; `seed` decides the validation split where one is made.

    Raises:
        ValueError: no image or label column, an empty split, a single class, a label without a class.
    """
    images = labelled(arguments, named_splits(_load(arguments), arguments.dataset_name or arguments.train_dir))
    present = np.unique(images.labels("train"))
    if len(present) < 2:
        raise ValueError(
            f"the train split of {images.name!r} holds one class only, {images.class_names[present[0]]!r}: a "
            "classifier needs two"
        )
    _make_validation(images, arguments, seed)
    return images


def load_labelled_split(arguments: DataArguments, split: str, class_names: Sequence[str] | None) -> LabelledImages:
    """One split of the data set of `arguments`, its labels as indices into `class_names`, or into its own classes.

    Raises:
        ValueError: there is no such split, no image or label column, or a label is not among the classes.
    """
    found = _load(arguments)
    if split not in found:
        raise ValueError(f"--split {split!r} is not in the data; its splits: {', '.join(found)}")
    images = labelled(arguments, {split: found[split]}, class_names)
    limit_samples(images.splits, arguments, seed=0)
    return images


def labelled(
    arguments: DataArguments, raw: Mapping[str, Dataset], class_names: Sequence[str] | None = None
) -> LabelledImages:
    """Finds the columns in the first split, and the classes too when they are not given."""
    reference = next(iter(raw.values()))
    image_column = find_image_column(reference, arguments.image_column_name)
    label_column = find_label_column(reference, arguments.label_column_name, image_column)
    class_names = list(class_names or find_class_names(reference, label_column, arguments.class_names))
    if len(raw) > 1 and "test" in raw and set(raw["test"].unique(label_column)) == {-1}:
        logger.info("the test split does not give its labels away: it is left out")
        raw = {split: dataset for split, dataset in raw.items() if split != "test"}
    images = LabelledImages(
        name=arguments.dataset_name or arguments.train_dir,
        revision=revision_of(reference.info),
        license=reference.info.license or None,
        image_column=image_column,
        label_column=label_column,
        class_names=class_names,
        splits={
            split: _with_class_indices(dataset, split, image_column, label_column, class_names, arguments.class_names)
            for split, dataset in raw.items()
        },
    )
    if arguments.on_bad_sample == "skip":
        _leave_out_bad_samples(images, arguments.dataloader_num_workers)
    return images


def _load(arguments: DataArguments) -> Mapping[str, Dataset]:
    """The raw splits, as the data set names them."""
    name = arguments.dataset_name or arguments.train_dir
    found = load_source(
        name,
        arguments.dataset_config_name,
        revision=arguments.dataset_revision,
        built_in=BUILT_IN,
        is_folder=arguments.train_dir is not None,
    )
    if arguments.validation_dir is not None:
        validation = load_folder(arguments.validation_dir, None)
        found = {"train": found["train"], "validation": next(iter(validation.values()))}
    return found


def _with_class_indices(
    dataset: Dataset,
    split: str,
    image_column: str,
    label_column: str,
    class_names: list[str],
    given_names: list[str] | None,
) -> Dataset:
    """`dataset` with the columns `image` (not decoded) and `label` (indices into `class_names`)."""
    for column in (image_column, label_column):
        if column not in dataset.column_names:
            raise ValueError(f"the {split} split has no column {column!r}; columns: {dataset.column_names}")
    name_of = label_namer(dataset.features[label_column], given_names)
    index_of = {name: index for index, name in enumerate(class_names)}
    labels = dataset.select_columns([label_column])
    names = [name_of(label) for label in labels.with_format("arrow")[:][label_column].to_pylist()]
    unknown = sorted(set(names) - set(index_of))
    if unknown:
        raise ValueError(
            f"the {split} split has labels without a class: {', '.join(unknown[:10])}; classes: "
            f"{', '.join(class_names[:20])}{', ...' if len(class_names) > 20 else ''}"
        )
    images = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    if image_column != "image":
        images = images.rename_column(image_column, "image")
    return images.add_column("label", np.asarray([index_of[name] for name in names], dtype=np.int64))


def _leave_out_bad_samples(images: LabelledImages, num_workers: int) -> None:
    for name, split in images.splits.items():
        bad = find_bad_samples(split, num_workers)
        images.bad_samples[name] = len(bad)
        if len(bad) == len(split):
            raise ValueError(f"no image of the {name} split can be decoded")
        if bad:
            logger.info(
                "left %d images of the %s split out that cannot be decoded: samples %s", len(bad), name, bad[:20]
            )
            images.splits[name] = split.select(np.setdiff1d(np.arange(len(split)), bad))


def _make_validation(images: LabelledImages, arguments: DataArguments, seed: int) -> None:
    """Splits validation off the training split where there is none, and applies the sample limits."""
    splits, stratify = images.splits, None
    if "validation" not in splits and arguments.train_val_split > 0:
        stratify = images.labels("train")
        counts = np.bincount(stratify, minlength=len(images.class_names))
        if counts[counts > 0].min() < 2:
            rare = images.class_names[int(np.flatnonzero(counts == 1)[0])]
            raise ValueError(f"--train_val_split: class {rare!r} has one image, a split needs two of each class")
    split_off_validation(splits, arguments, seed, stratify)
    limit_samples(splits, arguments, seed)


class ImageView(torch.utils.data.Dataset):
    """Samples of a split as tensors; the key decides the view.

    Items hold `pixel_values` (3, H, W) uint8, `labels` () int64 and `sample_key` (3,) int64. A plain integer index
    stands for `SampleKey(0, index, 0)`.

    Args:
        split: columns `image` and `label`.
        transform: decoded images, (3, height, width) uint8 each, and their keys to as many (3, H, W) uint8.
        keep_in_memory: decode all images now and never again.
    """

    def __init__(
        self,
        split: Dataset,
        transform: Callable[[list[torch.Tensor], list[SampleKey]], Sequence[torch.Tensor]],
        *,
        keep_in_memory: bool = False,
    ):
        self.decoded = DecodedImages(split) if keep_in_memory else None
        self.split = split.select_columns(["label"]) if keep_in_memory else split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> dict[str, torch.Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[dict[str, torch.Tensor]]:
        keys = [key if isinstance(key, tuple) else SampleKey(0, key, 0) for key in keys]
        rows = self.split[[key.index for key in keys]]
        if self.decoded is None:
            images = [decode_pixels(image, key.index) for image, key in zip(rows["image"], keys)]
        else:
            images = [self.decoded[key.index] for key in keys]
        return [
            {"pixel_values": pixels, "labels": torch.tensor(label), "sample_key": torch.tensor(key)}
            for pixels, label, key in zip(self.transform(images, keys), rows["label"], keys)
        ]


class DecodedImages:
    """The decoded images of a split, whatever their sizes, one after the other in one tensor that workers share."""

    def __init__(self, split: Dataset):
        images = [decode_pixels(image, index) for index, image in enumerate(split["image"])]
        self.shapes = [image.shape for image in images]
        self.starts = np.cumsum([0, *(image.numel() for image in images)]).tolist()
        self.pixels = torch.cat([image.flatten() for image in images])

    def __getitem__(self, index: int) -> torch.Tensor:
        """(3, height, width) uint8."""
        return self.pixels[self.starts[index] : self.starts[index + 1]].view(self.shapes[index])


def class_mapping(class_names: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` for a model's config."""
    id2label = dict(enumerate(class_names))
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
