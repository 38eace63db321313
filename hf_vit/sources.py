"""Splits of a data set of the Hub, of a folder or built in, whatever their columns hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from hf_vit.source_arguments import SourceArguments

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")
_DATA_FILES = (".parquet", ".arrow", ".tar", ".zip")


def revision_of(info: datasets.DatasetInfo) -> str | None:
    """The commit of a Hub dataset, which `datasets` writes into the addresses of its files."""
    for url in info.download_checksums or {}:
        if url.startswith("hf://") and "@" in url:
            return url.partition("@")[2].partition("/")[0]
    return None


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a folder to disk."""
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def _declares_files(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace")


def own_name(path: str) -> str:
    """The name of a folder or a file without what comes after its first dot; where that is a split's, the name of the
    folder around it."""
    where = Path(path).resolve()
    name = where.name if where.is_dir() else where.name.partition(".")[0]
    return where.parent.name if name in SPLIT_NAMES else name


def is_undivided(folder: Path) -> bool:
    """Whether a folder that `datasets` reads says nothing of splits, and is `train` for want of another name."""
    if is_saved(folder):
        return (folder / "state.json").exists()
    return not _declares_files(folder) and (
        datasets.data_files.get_data_patterns(str(folder)) == datasets.data_files.DEFAULT_PATTERNS_ALL
    )


def the_split(found: Mapping[str, Dataset], split: str, *, undivided: bool) -> Dataset:
    """One of the splits; of data that is not divided all of it, whatever it is called.

    Raises:
        ValueError: there is none of that name.
    """
    if undivided and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"--split {split!r} is not in the data; its splits: {', '.join(found)}")
    return found[split]


def holds_data_files(folder: Path) -> bool:
    """Whether there are tables or archives of samples in a folder, or a README that says where its data is."""
    if _declares_files(folder):
        return True
    return any(file.suffix.lower() in _DATA_FILES for file in folder.rglob("*"))


def load_folder(folder: str, config_name: str | None) -> DatasetDict:
    """The splits of a folder that `datasets` reads, or saved to disk.

    Raises:
        ValueError: there is no such folder, or no data in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"no such folder: {folder!r}")
    if is_saved(path):
        loaded = datasets.load_from_disk(folder)
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    try:
        return datasets.load_dataset(folder, config_name)
    except FileNotFoundError as error:
        if error.filename is not None:  # it is no word of `datasets` on the folder, but a file that it cannot make
            raise
        raise ValueError(f"there is no data in {folder!r} that `datasets` reads") from error


def load_source(
    name: str,
    config_name: str | None = None,
    *,
    revision: str | None = None,
    built_in: Mapping[str, Callable[[], DatasetDict]],
    is_folder: bool = False,
) -> Mapping[str, Dataset]:
    """Every split of a data set, as it names them.

    Args:
        built_in: data sets made here, by their names.
        is_folder: `name` can be a folder only.

    Raises:
        ValueError: the folder does not exist, or a split has no rows.
    """
    try:
        if is_folder or Path(name).is_dir():
            return load_folder(name, config_name)
        if name in built_in:
            return built_in[name]()
        return datasets.load_dataset(name, config_name, revision=revision)
    except IndexError as error:  # what `datasets` makes of a split saved without rows
        raise ValueError(f"cannot load {name!r}: is one of its splits empty?") from error


def named_splits(found: Mapping[str, Dataset], name: str, test_name: str = "test") -> dict[str, Dataset]:
    """The splits as `train` and, where they exist, `validation` and `test`.

    Raises:
        ValueError: there is no train split, or one of those is empty.
    """
    if "train" not in found:
        raise ValueError(f"{name!r} has no train split; it has {', '.join(found)}")
    splits = {"train": found["train"]}
    for candidate in VALIDATION_NAMES:
        if candidate in found:
            splits["validation"] = found[candidate]
            break
    if test_name in found:
        splits["test"] = found[test_name]
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"the {split} split of {name!r} is empty")
    return splits


def split_off_validation(
    splits: dict[str, Dataset], arguments: SourceArguments, seed: int, stratify: np.ndarray | None = None
) -> None:
    """Makes a validation split of a part of the training split where there is none.

    Args:
        stratify: (N,) the classes of the training samples, of which each part gets its share.

    Raises:
        ValueError: the training samples cannot be parted so, or nothing is left to evaluate.
    """
    part = arguments.train_val_split
    if "validation" not in splits and part > 0:
        rows = np.arange(len(splits["train"]))
        if len(rows) < 2:
            raise ValueError(f"--train_val_split {part}: 1 training sample cannot be parted; give data for validation")
        try:
            parts = train_test_split(rows, test_size=part, stratify=stratify, random_state=seed)
        except ValueError as error:
            raise ValueError(f"--train_val_split {part} cannot part {len(rows)} training samples: {error}") from error
        splits["train"], splits["validation"] = (splits["train"].select(np.sort(chosen)) for chosen in parts)
    if "validation" not in splits and "test" not in splits:
        raise ValueError(
            "--train_val_split 0 leaves nothing to evaluate, for the data has no validation or test split: give "
            "one, or a part of the training samples, such as --train_val_split 0.1"
        )


def limit_samples(splits: dict[str, Dataset], arguments: SourceArguments, seed: int) -> None:
    """Leaves `max_train_samples` and `max_eval_samples` of the splits, chosen by `seed`, in their order."""
    for split, dataset in splits.items():
        limit = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
        if limit is not None and limit < len(dataset):
            chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
            splits[split] = dataset.select(np.sort(chosen))
