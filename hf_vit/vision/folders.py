"""Folders of images, one folder a class, as torchvision's `ImageFolder` reads them; every file is used or named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_vit.sources import SPLIT_NAMES, VALIDATION_NAMES, holds_data_files, is_saved, is_undivided, load_source
from hf_vit.vision.image_tables import (
    HOW_TO_TABLE,
    REPEATED,
    SPLIT_COLUMN,
    is_table_of_images,
    read_table,
    table_in,
)
from hf_vit.words import counted

HIDDEN = "name begins with _ or ."
NOT_AN_IMAGE = "no image that Pillow decodes"
OUTSIDE = "outside the folders of classes"
EMPTY = "folder without an image, no class"
UNREADABLE_NAME = "name is no text"
NOT_IN_TABLE = "not in the table"
# Pillow opens these, and has no decoder of its own for them.
_WITHOUT_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

Unused = dict[str, list[str]]  # names of files that are not used, by the reason


@dataclass
class ImageFolder:
    """The files of a folder: images with the class that each is of, and what is not used, by the reason."""

    path: Path
    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)  # of each file
    unused: Unused = field(default_factory=dict)

    table: Dataset | None = None  # columns beside the images, instead of classes
    image_column: str = "image"

    def dataset(self) -> Dataset:
        """Columns `image`, paths that are not decoded, and `label`, the classes by name in alphabetical order, or
        those of the table."""
        images = [{"path": file, "bytes": None} for file in self.files]
        if self.table is not None:
            columns, kinds = {name: self.table[name][:] for name in self.table.column_names}, self.table.features
            kinds = {**kinds, self.image_column: ImageFeature(decode=False)}
            return Dataset.from_dict({**columns, self.image_column: images}, Features(kinds))
        labels = ClassLabel(names=sorted(set(self.classes)))
        rows = {"image": images, "label": [labels.str2int(name) for name in self.classes]}
        return Dataset.from_dict(rows, Features({"image": ImageFeature(decode=False), "label": labels}))

    def leave_out(self, reason: str, path: str) -> None:
        self.unused.setdefault(reason, []).append(path)


def image_extensions() -> set[str]:
    """Extensions of the files that Pillow decodes here, in lower case; .avif is among them where it can."""
    Image.init()
    formats = set(Image.OPEN) - _WITHOUT_DECODER
    return {extension for extension, name in Image.registered_extensions().items() if name in formats}


def read_image_folders(folder: str, file_column: str | None = None) -> dict[str, ImageFolder]:
    """A folder's images by split: all of them are in `train` unless its top-level folders are exactly names of splits
    (train; validation, valid, val or dev; test), which hold the folders of the classes in turn.

    In a split the top-level folder is the class, however deep an image lies. Files and folders whose names begin with
    `_` or `.` are left out. A table, metadata.csv, metadata.jsonl or labels.csv, in a split or beside the splits, says
    instead which files there are, in its column `file_name` or the one given, and in the others what is known of them.

    Raises:
        ValueError: there is no such folder, no image in a folder of a class, or two folders for validation; or the
            table cannot be read or names a file that is not there.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"no such folder: {folder!r}")
    tops = _split_folders(path)
    if not tops:
        return {"train": _read(path, path, file_column)}
    validation = [name for name in tops if name in VALIDATION_NAMES]
    if len(validation) > 1:
        raise ValueError(f"{folder!r} has {len(validation)} folders for validation: {', '.join(validation)}")
    if (table := table_in(path)) is not None:
        return _part(_read_table(table, path, file_column), {role(name): name for name in tops})
    splits = {role(name): _read(path / name, path, file_column) for name in tops}
    first = splits.get("train") or next(iter(splits.values()))
    for name in sorted(os.listdir(path)):  # beside the splits
        if name not in tops:
            for file in _walk(path / name) if (path / name).is_dir() else [path / name]:
                first.leave_out(HIDDEN if _is_hidden(name) else OUTSIDE, str(file.relative_to(path)))
    return splits


def _split_folders(folder: Path) -> list[str]:
    """The folders in a folder if all of them are named as splits are, else none."""
    tops = [name for name in sorted(os.listdir(folder)) if (folder / name).is_dir() and not _is_hidden(name)]
    return tops if set(tops) <= set(SPLIT_NAMES) else []


def is_one_split(folder: Path, is_data_set: bool) -> bool:
    """Whether a folder, or a table of images, is not divided into splits."""
    if folder.is_file():
        return SPLIT_COLUMN not in read_table(folder)[0].column_names
    return not _split_folders(folder) if is_of_images(folder, is_data_set) else is_undivided(folder)


def _part(whole: ImageFolder, tops: dict[str, str]) -> dict[str, ImageFolder]:
    """The splits of a table beside them, by the folder that each file is in."""
    table, paths = whole.table, [Path(file).relative_to(whole.path) for file in whole.files]
    assert table is not None
    splits = {}
    for split, top in tops.items():
        rows = [row for row, path in enumerate(paths) if path.parts[0] == top]
        splits[split] = _rows_of(whole, rows)
    first = splits.get("train") or next(iter(splits.values()))
    first.unused = whole.unused
    for path in paths:
        if path.parts[0] not in tops.values():
            first.leave_out(OUTSIDE, str(path))
    return splits


def _rows_of(whole: ImageFolder, rows: list[int]) -> ImageFolder:
    assert whole.table is not None
    files = [whole.files[row] for row in rows]
    return ImageFolder(whole.path, files, table=whole.table.select(rows), image_column=whole.image_column)


def _read(folder: Path, root: Path, file_column: str | None) -> ImageFolder:
    if (table := table_in(folder)) is not None:
        return _read_table(table, root, file_column)
    found, known = ImageFolder(folder), image_extensions()
    for top in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(top.path)
        if not top.is_dir():
            found.leave_out(HIDDEN if _is_hidden(top.name) else OUTSIDE, str(path.relative_to(root)))
            continue
        count = len(found.files)
        for file in _walk(path):
            parts = file.relative_to(folder).parts
            if any(map(_is_hidden, parts)):
                found.leave_out(HIDDEN, str(file.relative_to(root)))
            elif file.suffix.lower() not in known:
                found.leave_out(NOT_AN_IMAGE, str(file.relative_to(root)))
            elif not _is_text(str(file)):
                found.leave_out(UNREADABLE_NAME, repr(str(file.relative_to(root))))
            else:
                found.files.append(str(file))
                found.classes.append(top.name)
        if len(found.files) == count and not _is_hidden(top.name):
            found.leave_out(EMPTY, f"{path.relative_to(root)}{os.sep}")
    if not found.files:
        raise ValueError(_why_no_class(folder, known))
    return found


def _read_table(path: Path, root: Path, file_column: str | None) -> ImageFolder:
    table, column, repeated = read_table(path, file_column)
    files = [path.parent / str(file) for file in table[column]]
    found = ImageFolder(path.parent, [str(file) for file in files], table=table.remove_columns(column))
    found.image_column = column if column == file_column else "image"
    for name in repeated:
        found.leave_out(REPEATED, name)
    used = {*files, path}
    for file in _walk(path.parent):
        if file not in used:
            found.leave_out(NOT_IN_TABLE, str(file.relative_to(root)))
    return found


def _read_table_file(path: Path, file_column: str | None) -> dict[str, ImageFolder]:
    """The splits of a table that was named itself, by its column `split` where it has one; other files around it are
    no part of the data.

    Raises:
        ValueError: what the column holds names no split.
    """
    table, column, repeated = read_table(path, file_column)
    files = [str(path.parent / str(file)) for file in table[column]]
    whole = ImageFolder(path.parent, files, table=table.remove_columns(column))
    whole.image_column = column if column == file_column else "image"
    rows: dict[str, list[int]] = {}
    if SPLIT_COLUMN in table.column_names:
        for row, name in enumerate(table[SPLIT_COLUMN]):
            if name not in SPLIT_NAMES:
                allowed = ", ".join(SPLIT_NAMES)
                raise ValueError(f"{str(path)!r} has {name!r} in its column {SPLIT_COLUMN}, which can be {allowed}")
            rows.setdefault(role(name), []).append(row)
    splits = {split: _rows_of(whole, found) for split, found in rows.items()} or {"train": whole}
    for name in repeated:
        next(iter(splits.values())).leave_out(REPEATED, name)
    return splits


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order; a folder that a link leads back to is entered once."""
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def holds_images(folder: Path, *, nested: bool = False) -> bool:
    """Whether there is an image anywhere in a folder, or in one of its folders."""
    known = image_extensions()
    return any(
        file.suffix.lower() in known and not (nested and file.parent == folder)
        for file in _walk(folder)
        if not any(map(_is_hidden, file.relative_to(folder).parts))
    )


def load_image_folder(
    folder: str, config_name: str | None = None, *, is_data_set: bool = False, file_column: str | None = None
) -> tuple[dict[str, Dataset], dict[str, Unused]]:
    """The splits of a local folder and the files of each that are not used: of folders of images by their classes, of
    whatever else `datasets` reads, or what it has saved to disk.

    Args:
        folder: or a table of images, CSV, TSV or JSON lines, that says of each image where it is.
        is_data_set: where there are both tables, such as parquet, and images, the tables are the data.
        file_column: the column of a table that names the files, where it is not `file_name`.

    Raises:
        ValueError: there is no such folder, or nothing in it can be read.
    """
    path = Path(folder)
    if is_table_of_images(path):
        found = _read_table_file(path, file_column)
    elif not path.is_dir() or not is_of_images(path, is_data_set):
        return dict(load_source(folder, config_name, built_in={}, is_folder=True)), {}
    else:
        found = read_image_folders(folder, file_column)
    return {split: each.dataset() for split, each in found.items()}, {s: each.unused for s, each in found.items()}


def is_of_images(folder: Path, is_data_set: bool) -> bool:
    """Whether a folder is read as folders of images, or images with a table, and not by `datasets`."""
    if table_in(folder) is not None:
        return True
    if is_saved(folder):
        return False
    if is_data_set:
        return not holds_data_files(folder) and holds_images(folder)
    return not holds_data_files(folder) or holds_images(folder, nested=True)


def load_split_folder(folder: str, split: str, file_column: str | None = None) -> tuple[Dataset, Unused]:
    """A folder that is one split, or holds it beside others."""
    found, unused = load_image_folder(folder, file_column=file_column)
    wanted = next((each for each in found if len(found) == 1 or role(each) == split), None)
    if wanted is None:
        raise ValueError(f"--{split}_dir {folder!r} holds the splits {', '.join(found)}, and none for {split}")
    return found[wanted], unused.get(wanted, {})


def role(split: str) -> str:
    """A split's name here, where that for validation has several."""
    return "validation" if split in VALIDATION_NAMES else split


def is_table(name: str) -> bool:
    return Path(name).suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet")


def _why_no_class(folder: Path, known: set[str]) -> str:
    """Advice on a folder in which no folder holds images."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not _is_hidden(path.name))
    images = [name for name in names if Path(name).suffix.lower() in known]
    tables = [name for name in names if is_table(name)]
    if not images and not tables:
        return f"{str(folder)!r} has no folder with an image: put the images of each class into a folder of its name"
    if tables:
        return (
            f"{str(folder)!r} holds {counted(len(images), 'images')} beside {tables[0]!r} and no folder of a class: "
            f"{HOW_TO_TABLE}"
        )
    return (
        f"{str(folder)!r} holds {counted(len(images), 'images')} and no folder of a class: put the images of each "
        "class into a folder of its name"
    )
