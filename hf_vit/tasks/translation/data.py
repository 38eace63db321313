"""Pairs of texts from any `datasets` source, parallel text files or JSON lines: checked, encoded and batched.

Shapes: B batch.
"""

from __future__ import annotations

import copy
import csv
import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_vit.files import digest
from hf_vit.sample_keys import SampleKey
from hf_vit.sources import (
    is_undivided,
    limit_samples,
    load_source,
    named_splits,
    own_name,
    revision_of,
    split_off_validation,
    the_split,
)
from hf_vit.tasks.generation import IGNORED
from hf_vit.tasks.translation.arguments import ScoredTextArguments, TextDataArguments
from hf_vit.tasks.translation.dates import load_dates
from hf_vit.text.tokenization import Tokenizers
from hf_vit.words import counted, shortened

BUILT_IN = {"dates": load_dates}

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)  # what is compressed


@dataclass
class ParallelTexts:
    """The splits of a data set with two columns of text, `source` and `target`; `left_out` counts training pairs."""

    name: str
    revision: str | None
    license: str | None
    source_lang: str
    target_lang: str
    splits: dict[str, Dataset]
    left_out: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the run's record."""
        splits = {
            split: {"num_examples": len(dataset), "fingerprint": fingerprint(dataset)}
            for split, dataset in self.splits.items()
        }
        origin = {"name": self.name, "revision": self.revision, "license": self.license}
        languages = {"source_lang": self.source_lang, "target_lang": self.target_lang}
        return {**origin, **languages, "splits": splits, "left_out": self.left_out}


def fingerprint(dataset: Dataset) -> str:
    """A digest of all texts, the same on every machine."""
    batches = dataset.select_columns(["source", "target"]).iter(1000)
    return digest(repr((rows["source"], rows["target"])).encode() for rows in batches)[:16]


def load_parallel_texts(arguments: TextDataArguments, seed: int) -> ParallelTexts:
    """Loads and checks the data set of `arguments`; `seed` decides the validation split where one is made.

    White space around a text does not count. Training pairs without a text on either side are left out; in
    evaluation they stay.

    Raises:
        ValueError: a language that the data has not, parallel files of different length, an unreadable file, no pair
            to train on.
    """
    name: Any = arguments.dataset_name
    if arguments.train_file is not None:
        name = own_name(arguments.train_file[0])
        raw = {split: _read_files(split, files, arguments) for split, files in arguments.files.items()}
    else:
        options: dict[str, Any] = {"revision": arguments.dataset_revision, "built_in": BUILT_IN}
        found = load_source(name, arguments.dataset_config_name, **options)
        if arguments.test_split_name not in found and arguments.test_split_name != "test":
            raise ValueError(f"--test_split_name {arguments.test_split_name!r} is not one of {', '.join(found)}")
        raw = named_splits(found, name, arguments.test_split_name)
    info = raw["train"].info
    splits = {split: _two_columns(dataset, split, arguments) for split, dataset in raw.items()}
    splits["train"], left_out = _cleaned(splits["train"], arguments)
    if len(splits["train"]) == 0:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items())
        raise ValueError(f"the train split of {name!r} has no pair with a source and a target ({reasons})")
    split_off_validation(splits, arguments, seed)
    limit_samples(splits, arguments, seed)
    languages: tuple[Any, Any] = (arguments.source_lang, arguments.target_lang)
    name = own_name(name) if Path(name).is_dir() else name
    return ParallelTexts(name, revision_of(info), info.license or None, *languages, splits, left_out)


def _cleaned(pairs: Dataset, arguments: TextDataArguments) -> tuple[Dataset, dict[str, int]]:
    """The pairs to train on, and how many are left out by the reason: those without a text on either side and, where
    asked for, those of unlike lengths and those that were there before."""
    left_out = {"empty": 0}
    if arguments.max_length_ratio is not None:
        left_out["length_ratio"] = 0
    if arguments.drop_duplicates:
        left_out["duplicates"] = 0
    kept, seen = [], set()
    for index, pair in enumerate(zip(pairs["source"], pairs["target"])):
        shorter, longer = sorted(map(len, pair))
        if not shorter:
            left_out["empty"] += 1
        elif arguments.max_length_ratio is not None and longer > arguments.max_length_ratio * shorter:
            left_out["length_ratio"] += 1
        elif arguments.drop_duplicates and pair in seen:
            left_out["duplicates"] += 1
        else:
            kept.append(index)
            if arguments.drop_duplicates:
                seen.add(pair)
    return (pairs if len(kept) == len(pairs) else pairs.select(kept)), left_out


def load_parallel_split(arguments: ScoredTextArguments, split: str) -> ParallelTexts:
    """One split of the data set of `arguments`, as it names it, with all its pairs.

    Raises:
        ValueError: there is no such split, or it has no pair; otherwise as `load_parallel_texts`.
    """
    name: Any = arguments.dataset_name
    found: Mapping[str, Dataset]
    if arguments.files:
        found = {each: _read_files(each, files, arguments) for each, files in arguments.files.items() if each == split}
        if split not in found:
            raise ValueError(f"--split {split!r} is not in the data; its splits: {', '.join(arguments.files)}")
        name, dataset = own_name(arguments.files[split][0]), found[split]
    else:
        options: dict[str, Any] = {"revision": arguments.dataset_revision, "built_in": BUILT_IN}
        found = load_source(name, arguments.dataset_config_name, **options)
        is_folder = Path(name).is_dir()
        dataset = the_split(found, split, undivided=is_folder and is_undivided(Path(name)))
        name = own_name(name) if is_folder else name
    if len(dataset) == 0:
        raise ValueError(f"the {split} split of {name!r} is empty")
    info, splits = dataset.info, {split: _two_columns(dataset, split, arguments)}
    limit_samples(splits, arguments, seed=0)
    languages: tuple[Any, Any] = (arguments.source_lang, arguments.target_lang)
    return ParallelTexts(name, revision_of(info), info.license or None, *languages, splits)


def _read_files(split: str, files: list[str], arguments: TextDataArguments) -> Dataset:
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ValueError(f"--{split}_file: no such file: {missing[0]!r}")
    if len(files) == 1:
        if separator := _SEPARATORS.get(_suffix(files[0])):
            return _read_table(split, files[0], separator, arguments)
        try:
            return Dataset.from_json(files[0])
        except StopIteration as error:  # what `datasets` makes of an empty file
            raise ValueError(f"--{split}_file {files[0]!r} is empty") from error
        except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
            why = error.__cause__ or error
            raise ValueError(
                f"--{split}_file {files[0]!r} is not a file of JSON lines: {' '.join(str(why).split())}; tables are "
                f"named .csv or .tsv, and two parallel texts given as --{split}_file SOURCE TARGET"
            ) from error
    whole = [file for file in files if _suffix(file) in (*_SEPARATORS, ".json", ".jsonl")]
    if whole:
        raise ValueError(f"--{split}_file: {whole[0]!r} is a file of pairs, and takes no second file beside it")
    texts = [_lines(file) for file in files]
    if len(texts[0]) != len(texts[1]):
        lengths = " and ".join(f"{file!r} {len(lines):,} lines" for file, lines in zip(files, texts))
        raise ValueError(f"--{split}_file: parallel files must have as many lines as each other, found {lengths}")
    return Dataset.from_dict(dict(zip((arguments.source_lang, arguments.target_lang), texts)))


def _suffix(file: str) -> str:
    return PurePath(file.removesuffix(".gz")).suffix.lower()


def _read_table(split: str, file: str, separator: str, arguments: TextDataArguments) -> Dataset:
    """A table of texts whose first line names the columns; only fields of a CSV are quoted."""
    quoting: Any = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    opened = gzip.open if file.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
            numbered = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error, *_DAMAGED) as error:
        raise ValueError(f"--{split}_file {file!r} is not a table in UTF-8: {error}") from error
    names = numbered[0][1] if numbered else []
    missing = {arguments.source_lang, arguments.target_lang} - set(names)
    if missing or len(set(names)) < len(names):
        raise ValueError(
            f"--{split}_file {file!r}: its first line must name the columns, {arguments.source_lang!r} and "
            f"{arguments.target_lang!r} among them, each once; it is {shortened(separator.join(names))!r}"
        )
    odd = next(((line, row) for line, row in numbered if len(row) != len(names)), None)
    if odd is not None:
        raise ValueError(
            f"--{split}_file {file!r} has {counted(len(odd[1]), 'fields')} in line {odd[0]:,} and {len(names)} in its "
            f"first: {shortened(separator.join(odd[1]))!r}"
        )
    return Dataset.from_dict({name: [row[index] for _, row in numbered[1:]] for index, name in enumerate(names)})


def _lines(file: str) -> list[str]:
    """The lines of a text file, which may be compressed by gzip and begin with a byte-order mark, ended by line feeds
    alone: other separators of Unicode are part of a text.

    Raises:
        ValueError: the file is not of text in UTF-8, or there is a carriage return within a line.
    """
    opened = gzip.open if file.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="\n") as text:
            lines = [line.rstrip("\r\n") for line in text]
    except (UnicodeDecodeError, *_DAMAGED) as error:
        raise ValueError(f"{file!r} is not a text file in UTF-8: {error}") from error
    odd = next((number for number, line in enumerate(lines, 1) if "\r" in line), None)
    if odd is not None:
        raise ValueError(
            f"{file!r} has a carriage return within line {odd:,}: end lines by line feeds, which `tr '\\r' '\\n'` "
            "makes of lone carriage returns"
        )
    return lines


def _languages(dataset: Dataset) -> list[str]:
    """The languages of the column `translation`, none where it does not hold texts by language."""
    nested = dataset.features["translation"]
    if isinstance(nested, (dict, datasets.Translation)):
        return list(getattr(nested, "languages", nested))
    rows = dataset["translation"]  # rows that do not all have the same languages have no type of their own
    return list(dict.fromkeys(name for pair in rows if isinstance(pair, Mapping) for name in pair))


def _two_columns(dataset: Dataset, split: str, arguments: TextDataArguments) -> Dataset:
    """The columns `source` and `target`, from columns named as the languages or a column `translation` of both."""
    languages: tuple[Any, Any] = (arguments.source_lang, arguments.target_lang)
    nested = "translation" in dataset.column_names and not set(languages) <= set(dataset.column_names)
    known = (_languages(dataset) if nested else None) or dataset.column_names
    for name, language in zip(("source_lang", "target_lang"), languages):
        if language not in known:
            raise ValueError(f"--{name} {language!r} is not in the {split} split; it has {', '.join(known)}")

    def pick(rows: dict[str, list]) -> dict[str, list[str]]:
        if nested:
            pairs = [{} if pair is None else pair for pair in rows["translation"]]
            odd = next((pair for pair in pairs if not isinstance(pair, Mapping)), None)
            if odd is not None:
                raise ValueError(f"translation in the {split} split must hold texts by language, found {odd!r}")
            rows = {name: [pair.get(name) for pair in pairs] for name in languages}
        texts = [rows[name] for name in languages]
        if any(not isinstance(text, (str, type(None))) for column in texts for text in column):
            raise ValueError(f"--source_lang and --target_lang must name columns of text in the {split} split")
        source, target = ([(text or "").strip() for text in column] for column in texts)
        return {"source": source, "target": target}

    return dataset.map(pick, batched=True, remove_columns=dataset.column_names)


class TextPairs(torch.utils.data.Dataset):
    """A split as token ids.

    Items hold `input_ids` and `labels`, 1-D int64, both with what the tokenizer ends a text with, and `sample_key`
    (3,) int64. A plain integer index stands for `SampleKey(0, index, 0)`.

    Args:
        max_source_length: sources are cut to so many tokens, none when None.
    """

    def __init__(self, dataset: Dataset, tokenizers: Tokenizers, max_source_length: int | None = None):
        cut = {"truncation": max_source_length is not None, "max_length": max_source_length}

        def encode(rows: dict[str, list[str]]) -> dict[str, list]:
            # Some tokenizers make nothing of an empty text, and the model needs a token.
            nothing = [[tokenizer.pad_token_id] for tokenizer in tokenizers]
            source = tokenizers.source(rows["source"], **cut)["input_ids"]
            target = tokenizers.target(text_target=rows["target"])["input_ids"]
            return {
                "input_ids": [ids or nothing[0] for ids in source],
                "labels": [ids or nothing[1] for ids in target],
                "source_length": [max(len(ids), 1) for ids in source],
                "target_length": [max(len(ids), 1) for ids in target],
            }

        self.encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names)
        lengths = self.encoded.with_format("numpy")
        self.lengths = np.stack([lengths["source_length"][:], lengths["target_length"][:]], axis=1)  # (pairs, 2)
        self.encoded = self.encoded.select_columns(["input_ids", "labels"]).with_format("torch")

    def select(self, rows: np.ndarray) -> TextPairs:
        """The pairs of these rows alone."""
        selected = copy.copy(self)
        selected.encoded, selected.lengths = self.encoded.select(rows), self.lengths[rows]
        return selected

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: SampleKey | int) -> dict[str, torch.Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[SampleKey | int]) -> list[dict[str, torch.Tensor]]:
        """The items of a whole batch, which is many times faster than one after the other."""
        full = [key if isinstance(key, SampleKey) else SampleKey(0, int(key), 0) for key in keys]
        rows = self.encoded[[key.index for key in full]]
        return [
            {"input_ids": source, "labels": target, "sample_key": torch.tensor(key)}
            for source, target, key in zip(rows["input_ids"], rows["labels"], full)
        ]


class Collator:
    """Items to a batch: `input_ids`, `attention_mask` (B, source tokens), `labels` (B, target tokens; -100 fills
    up), `sample_key` (B, 3)."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        source = [item["input_ids"] for item in items]
        return {
            "input_ids": pad_sequence(source, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in source], batch_first=True),
            "labels": pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORED),
            "sample_key": torch.stack([item["sample_key"] for item in items]),
        }
