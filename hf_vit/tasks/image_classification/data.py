"""Labelled images from any `datasets` source: columns found, classes named, splits made, labels checked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, concatenate_datasets
from sklearn.model_selection import KFold, StratifiedKFold

from hf_vit.sources import (
    limit_samples,
    load_source,
    named_splits,
    own_name,
    revision_of,
    split_off_validation,
    the_split,
)
from hf_vit.tasks.image_classification.arguments import DataArguments, ScoredDataArguments
from hf_vit.tasks.image_classification.digits import load_sklearn_digits
from hf_vit.tasks.image_classification.labelled_images import MOST_NAMED, LabelledImages
from hf_vit.tasks.image_classification.multi_label import SEPARATOR, LabelColumns
from hf_vit.vision.bad_samples import find_bad_samples
from hf_vit.vision.columns import find_class_names, find_image_column, find_label_column, label_namer
from hf_vit.vision.folders import (
    Unused,
    is_one_split,
    is_table,
    load_image_folder,
    load_split_folder,
    role,
)
from hf_vit.vision.image_tables import HOW_TO_TABLE, is_table_of_images
from hf_vit.words import counted, listed

logger = logging.getLogger(__name__)


BUILT_IN = {"sklearn_digits": load_sklearn_digits}


def load_labelled_images(arguments: DataArguments, seed: int, *, is_multi_label: bool = False) -> LabelledImages:
    """Loads and checks the data set of `arguments`; `seed` decides the validation split where one is made.

    Args:
        is_multi_label: images have several labels each.

    Raises:
        ValueError: no image or label column, an empty split, a single class, a label without a class.
    """
    found, unused = _load(arguments)
    name: Any = arguments.dataset_name or arguments.train_dir
    images = labelled(arguments, named_splits(found, name), is_multi_label=is_multi_label)
    images.unused = unused
    present = np.flatnonzero(images.class_counts("train"))
    if len(present) < (1 if is_multi_label else 2):
        if is_multi_label:
            raise ValueError(f"no image of the train split of {images.name!r} has any label")
        tables = [name for names in unused.get("train", {}).values() for name in names if is_table(name)]
        raise ValueError(
            f"the train split of {images.name!r} holds one class only, {images.class_names[present[0]]!r}: a "
            f"classifier needs two{f' ({tables[0]!r} is not used: {HOW_TO_TABLE})' if tables else ''}"
        )
    _make_validation(images, arguments, seed)
    return images


def load_labelled_split(
    arguments: ScoredDataArguments, split: str, class_names: Sequence[str] | None, *, is_multi_label: bool = False
) -> LabelledImages:
    """One split of the data set of `arguments`, its labels as indices into `class_names`, or into its own classes. A
    folder without splits is the split that is asked for.

    Raises:
        ValueError: there is no such split, no image or label column, or a label is not among the classes.
    """
    if split in arguments.folders and split != "train":
        dataset, unused = load_split_folder(arguments.folders[split], split, arguments.image_column_name)
    else:
        found, left = _load(arguments)
        folder = Path(arguments.dataset_name or arguments.train_dir or "")
        is_local = folder.is_dir() or is_table_of_images(folder)
        undivided = is_local and set(found) == {"train"} and is_one_split(folder, arguments.train_dir is None)
        dataset, unused = the_split(found, split, undivided=undivided), left.get("train" if undivided else split, {})
    images = labelled(arguments, {split: dataset}, class_names, is_multi_label=is_multi_label)
    images.unused = {split: unused}
    limit_samples(images.splits, arguments, seed=0)
    if missing := images.missing():
        logger.warning(missing)
    return images


def labelled(
    arguments: DataArguments,
    raw: Mapping[str, Dataset],
    class_names: Sequence[str] | None = None,
    *,
    is_multi_label: bool = False,
) -> LabelledImages:
    """Finds the columns in the first split, and the classes too when they are not given."""
    reference = next(iter(raw.values()))
    if arguments.token_label_column_name in reference.column_names:  # masks are images, too
        reference = reference.remove_columns([arguments.token_label_column_name])
    image_column = find_image_column(reference, arguments.image_column_name)
    if is_multi_label:
        return _with_several_labels(arguments, raw, image_column, class_names)
    label_column = find_label_column(reference, arguments.label_column_name, image_column)
    class_names = list(class_names or find_class_names(reference, label_column, arguments.class_names))
    if len(raw) > 1 and "test" in raw and set(raw["test"].unique(label_column)) == {-1}:
        logger.info("the test split does not give its labels away: it is left out")
        raw = {split: dataset for split, dataset in raw.items() if split != "test"}
    images = LabelledImages(
        name=_name(arguments),
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
    if arguments.token_label_column_name is not None and "train" in raw:
        images.splits["train"] = _with_token_labels(images.splits["train"], raw["train"], arguments)
    if arguments.on_bad_sample == "skip":
        _leave_out_bad_samples(images, arguments.dataloader_num_workers)
    return images


def _with_several_labels(
    arguments: DataArguments, raw: Mapping[str, Dataset], image_column: str, class_names: Sequence[str] | None
) -> LabelledImages:
    reference = next(iter(raw.values()))
    columns = LabelColumns(reference, arguments.label_column_name, arguments.class_names)
    names = list(class_names or columns.class_names)
    splits = {}
    for split, dataset in raw.items():
        targets = columns.targets(dataset, split, names)
        splits[split] = _images_of(dataset, split, image_column).add_column("label", targets.tolist())
    images = LabelledImages(
        name=_name(arguments),
        revision=revision_of(reference.info),
        license=reference.info.license or None,
        image_column=image_column,
        label_column=columns.describe(),
        class_names=names,
        splits=splits,
        is_multi_label=True,
    )
    if arguments.on_bad_sample == "skip":
        _leave_out_bad_samples(images, arguments.dataloader_num_workers)
    return images


def _images_of(dataset: Dataset, split: str, image_column: str) -> Dataset:
    """The column `image`, not decoded."""
    if image_column not in dataset.column_names:
        raise ValueError(f"the {split} split has no column {image_column!r}; columns: {dataset.column_names}")
    images = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return images if image_column == "image" else images.rename_column(image_column, "image")


def _name(arguments: DataArguments) -> str:
    """The data set's name on the Hub, or the folder's own."""
    name = arguments.dataset_name or next(iter(arguments.folders.values()))
    return own_name(name) if Path(name).exists() else name


def _load(arguments: DataArguments) -> tuple[dict[str, Dataset], dict[str, Unused]]:
    """The raw splits, as the data set names them, and the files of each that are not used."""
    folders = arguments.folders
    name = arguments.dataset_name or arguments.train_dir
    if name is None:
        raise ValueError(f"--split: only folders for {', '.join(folders)} were given")
    is_local = Path(name).is_dir() or is_table_of_images(Path(name))
    if is_local or arguments.train_dir is not None:
        options: dict[str, Any] = {"is_data_set": arguments.train_dir is None}
        options["file_column"] = arguments.image_column_name
        found, unused = load_image_folder(name, arguments.dataset_config_name, **options)
    else:
        options = {"revision": arguments.dataset_revision, "built_in": BUILT_IN}
        found, unused = dict(load_source(name, arguments.dataset_config_name, **options)), {}
    for split in ("validation", "test"):
        if split in folders:
            found = {each: dataset for each, dataset in found.items() if role(each) != split}
            found[split], unused[split] = load_split_folder(folders[split], split, arguments.image_column_name)
    return found, unused


def _with_class_indices(
    dataset: Dataset,
    split: str,
    image_column: str,
    label_column: str,
    class_names: list[str],
    given_names: list[str] | None,
) -> Dataset:
    """`dataset` with the columns `image` (not decoded) and `label` (indices into `class_names`)."""
    images = _images_of(dataset, split, image_column)
    if label_column not in dataset.column_names:
        raise ValueError(f"the {split} split has no column {label_column!r}; columns: {dataset.column_names}")
    name_of = label_namer(dataset.features[label_column], given_names)
    index_of = {name: index for index, name in enumerate(class_names)}
    labels = dataset.select_columns([label_column])
    column = labels.with_format("arrow")[:][label_column].combine_chunks().dictionary_encode(null_encoding="encode")
    names = [name_of(label) for label in column.dictionary.to_pylist()]  # of each label once
    if label_column == "labels" and given_names is None and any(SEPARATOR in name for name in names):
        raise ValueError(
            f"column 'labels' of the {split} split holds several labels of an image, joined by {SEPARATOR}: give "
            f"--problem_type multi_label_classification, or name another column with --label_column_name"
        )
    unknown = sorted(set(names) - set(index_of))
    if unknown:
        raise ValueError(
            f"the {split} split has labels without a class: {', '.join(unknown[:10])}; classes: "
            f"{', '.join(class_names[:20])}{', ...' if len(class_names) > 20 else ''}"
        )
    indices = np.asarray([index_of[name] for name in names], dtype=np.int64)
    return images.add_column("label", indices[column.indices.to_numpy()])


def _with_token_labels(images: Dataset, raw: Dataset, arguments: DataArguments) -> Dataset:
    """The images with the column `token_label`, masks not decoded."""
    column = arguments.token_label_column_name
    if column not in raw.column_names:
        raise ValueError(f"--token_label_column_name {column!r} is no column; columns: {', '.join(raw.column_names)}")
    labels = raw.select_columns([column])
    if isinstance(labels.features[column], Image):
        labels = labels.cast_column(column, Image(decode=False))
    if column != "token_label":
        labels = labels.rename_column(column, "token_label")
    return concatenate_datasets([images, labels], axis=1)


def _leave_out_bad_samples(images: LabelledImages, num_workers: int) -> None:
    for name, split in images.splits.items():
        bad = find_bad_samples(split, num_workers)
        images.bad_samples[name] = len(bad)
        if len(bad) == len(split):
            raise ValueError(f"no image of the {name} split can be decoded")
        if bad:
            files = listed(list(bad.values()), MOST_NAMED)
            logger.info(f"left {counted(len(bad), 'images')} of the {name} split out that cannot be decoded: {files}")
            images.splits[name] = split.select(np.setdiff1d(np.arange(len(split)), list(bad)))


def _make_validation(images: LabelledImages, arguments: DataArguments, seed: int) -> None:
    """Splits validation off the training split where there is none, and applies the sample limits."""
    splits, stratify = images.splits, None
    if arguments.num_folds is not None and arguments.fold is not None:
        _take_fold(images, arguments.num_folds, arguments.fold, seed)
    if "validation" not in splits and arguments.train_val_split > 0 and not images.is_multi_label:
        stratify = images.labels("train")
        counts, part = np.bincount(stratify, minlength=len(images.class_names)), arguments.train_val_split
        if counts[counts > 0].min() < 2:
            rare = images.class_names[int(np.flatnonzero(counts == 1)[0])]
            raise ValueError(
                f"class {rare!r} has 1 image, and --train_val_split {part} needs two of each class: add one, or give "
                "images for validation with --validation_dir"
            )
        num_classes = int((counts > 0).sum())
        if math.ceil(part * len(stratify)) < num_classes:
            raise ValueError(
                f"--train_val_split {part} of {counted(len(stratify), 'images')} is less than one for each of "
                f"{num_classes} classes: give a larger part, or images for validation with --validation_dir"
            )
    split_off_validation(splits, arguments, seed, stratify)
    limit_samples(splits, arguments, seed)


def _take_fold(images: LabelledImages, num_folds: int, fold: int, seed: int) -> None:
    """Leave two splits: a fold of the training images for validation, whose `train_index` says where they were, and
    the others."""
    train, rows = images.splits["train"], np.arange(len(images.splits["train"]))
    if images.is_multi_label:
        if num_folds > len(rows):
            raise ValueError(f"--num_folds {num_folds} is more than the {counted(len(rows), 'images')} there are")
        parts = KFold(num_folds, shuffle=True, random_state=seed).split(rows)
    else:
        labels = images.labels("train")
        counts = np.bincount(labels, minlength=len(images.class_names))
        rarest = int(np.argmin(np.where(counts > 0, counts, counts.max() + 1)))
        if num_folds > counts[rarest]:
            raise ValueError(
                f"--num_folds {num_folds}: class {images.class_names[rarest]!r} has only "
                f"{counted(int(counts[rarest]), 'images')}, less than one for each fold"
            )
        parts = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(rows, labels)
    kept, chosen = list(parts)[fold]
    images.splits.clear()
    images.splits["train"] = train.select(kept)
    images.splits["validation"] = train.select(chosen).add_column("train_index", chosen)


def class_mapping(class_names: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` for a model's config."""
    id2label = dict(enumerate(class_names))
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
