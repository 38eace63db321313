"""Tables of images: CSV of any delimiter, TSV or JSON lines with the name of each image's file in one column."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas  # type: ignore[import-untyped]  # comes with datasets, its stubs do not
from datasets import Dataset

from hf_vit.words import counted

TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv")
FILE_COLUMN = "file_name"
SPLIT_COLUMN = "split"
HOW_TO_TABLE = (
    f"a table must be named {' or '.join(TABLES)} and have the images' names in its column {FILE_COLUMN} and their "
    "classes in the column label (several of an image, joined by |, in the column labels), or in the one named with "
    "--label_column_name"
)
REPEATED = "row given twice"
_DELIMITERS = ",;\t"
_SUFFIXES = (".csv", ".tsv", ".jsonl")


def is_table_of_images(path: Path) -> bool:
    """Whether a file is one that `read_table` reads, by its name."""
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def table_in(folder: Path) -> Path | None:
    """The table in a folder of images; a labels.csv without a column of files is none."""
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    return next((path for path in found if path.name != "labels.csv" or FILE_COLUMN in _header(path)[0]), None)


def read_table(path: Path, file_column: str | None = None) -> tuple[Dataset, str, list[str]]:
    """The rows of a table, each once, its column of files, and the files whose rows were given more than once.

    Args:
        file_column: the column of files where it is not called `file_name`.

    Raises:
        ValueError: it cannot be read, has no column of files, names a file twice with different labels, or one that is
            not there.
    """
    table = _rows(path, file_column)
    names = table.column_names
    column = file_column if file_column is not None and file_column in names else FILE_COLUMN
    if column not in names:
        raise ValueError(
            f"{str(path)!r} must have the images' names in a column {FILE_COLUMN}; it has {', '.join(names)}"
        )
    rows = list(zip(*(map(str, table[name]) for name in names)))
    files = [str(file) for file in table[column]]
    first: dict[str, int] = {}
    kept, repeated = [], []
    for number, file in enumerate(files):
        before = first.setdefault(file, number)
        if before == number:
            kept.append(number)
        elif rows[before] == rows[number]:
            repeated.append(file)
        else:
            raise ValueError(
                f"{str(path)!r} names {file!r} twice with different values, in rows {before + 1} and {number + 1}: "
                "keep one; several labels of an image are joined by | in a column labels"
            )
    if repeated:
        table = table.select(np.asarray(kept))
    missing = [file for file in first if not (path.parent / file).is_file()]
    if missing:
        raise ValueError(f"{str(path)!r} names {counted(len(missing), 'files')} not there, {missing[0]!r} first")
    return table, column, repeated


def _rows(path: Path, file_column: str | None) -> Dataset:
    try:
        if path.suffix.lower() == ".jsonl":
            return Dataset.from_json(str(path))
        header, delimiter = _header(path)
        # A file's name stays as it is spelled, 007 too.
        text = {name: str for name in header if name in (FILE_COLUMN, SPLIT_COLUMN, file_column)}
        options: dict[str, Any] = {"sep": delimiter, "keep_default_na": False, "encoding": "utf-8-sig", "dtype": text}
        return Dataset.from_pandas(pandas.read_csv(path, **options), preserve_index=False)
    except (StopIteration, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{str(path)!r} cannot be read: {why or 'it is empty'}") from error


def _header(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter: of comma, semicolon and tab the one that makes most of them."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline().rstrip("\r\n")
    found = [(next(csv.reader([line], delimiter=each), []), each) for each in _DELIMITERS]
    return max(found, key=lambda pair: len(pair[0]))
