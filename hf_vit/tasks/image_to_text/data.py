"""Images with their texts from any `datasets` source: checked, encoded and batched.

Shapes: B batch, C channels, H and W the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from hf_vit.files import digest
from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor
from hf_vit.sample_keys import SampleKey, seed_of
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
from hf_vit.tasks.image_to_text.arguments import ImageTextDataArguments
from hf_vit.tasks.image_to_text.digit_strings import draw_digit_strings
from hf_vit.vision.columns import find_image_column
from hf_vit.vision.decoding import decode, encoded

BUILT_IN: dict[str, Callable[[], DatasetDict]] = {"digit_strings": draw_digit_strings}
TEXT_COLUMNS = ("text", "texts", "caption", "captions", "sentence", "sentences", "transcription")
_FINGERPRINT_IMAGES = 256
_KEPT_BYTES = 2**28  # of decoded images


@dataclass
class ImageTexts:
    """The splits of a run, with the columns `image`, undecoded, and `texts`, lists of one text or more.

    `left_out` counts images of each split by the reason that they were left out for, `empty_texts` the texts that were
    left out of lists with others.
    """

    name: str
    revision: str | None
    license: str | None
    splits: dict[str, Dataset]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    empty_texts: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the run's record."""
        splits = {
            split: {
                "num_examples": len(dataset),
                "num_texts": sum(map(len, dataset["texts"])),
                "fingerprint": fingerprint(dataset),
            }
            for split, dataset in self.splits.items()
        }
        origin = {"name": self.name, "revision": self.revision, "license": self.license}
        return {**origin, "splits": splits, "left_out": self.left_out, "empty_texts": self.empty_texts}

    def count(self, split: str, reason: str, number: int) -> None:
        if number:
            self.left_out.setdefault(split, {})[reason] = number

    def summary(self) -> list[str]:
        """What was left out of each split, in words."""
        told = [
            f"{split}: {number:,} images left out, {reason.replace('_', ' ')}"
            for split, reasons in self.left_out.items()
            for reason, number in reasons.items()
        ]
        return told + [f"{split}: {n:,} empty texts beside others" for split, n in self.empty_texts.items()]


def fingerprint(split: Dataset) -> str:
    """A digest of the content, the same on every machine: all texts and up to 256 evenly spaced encoded images."""
    spaced = np.unique(np.linspace(0, len(split) - 1, _FINGERPRINT_IMAGES).astype(int))
    images = (encoded(split[int(index)]["image"]) for index in spaced)
    return digest([repr(split["texts"][:]).encode(), *images])[:16]


def find_text_column(dataset: Dataset, wanted: str | None) -> str:
    """The column of texts or of lists of them: the one named, the only one, or the only one of a usual name.

    Raises:
        ValueError: there is none, or more than one, or the one named holds something else.
    """
    columns = ", ".join(dataset.column_names)
    if wanted is not None:
        if wanted not in dataset.column_names or not _holds_texts(dataset.features[wanted]):
            raise ValueError(f"--text_column_name {wanted!r} is not a column of texts; columns: {columns}")
        return wanted
    found = [name for name, feature in dataset.features.items() if _holds_texts(feature)]
    if len(found) != 1:
        usual = [name for name in found if name.lower() in TEXT_COLUMNS]
        if len(usual) == 1:
            return usual[0]
        problem = f"several columns hold texts, {found}" if found else "no column holds texts"
        raise ValueError(f"{problem}: name one with --text_column_name; columns: {columns}")
    return found[0]


def _holds_texts(feature: Any) -> bool:
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _two_columns(dataset: Dataset, arguments: ImageTextDataArguments) -> tuple[Dataset, dict[str, int], int]:
    """The columns `image` and `texts`, white space around a text left out, and images left out by reason, and how
    many texts were empty beside others."""
    image = find_image_column(dataset, arguments.image_column_name)
    text = find_text_column(dataset, arguments.text_column_name)
    rows = dataset.select_columns([image, text]).cast_column(image, datasets.Image(decode=False))
    cells = [each if isinstance(each, list) else [each] for each in rows[text][:]]
    texts = [[one.strip() for one in each if one and one.strip()] for each in cells]
    has_image = [bool(encoded_cell(cell)) for cell in rows[image][:]]
    left_out = {
        "without_text": sum(not each for each in texts),
        "without_image": sum(bool(each) and not seen for each, seen in zip(texts, has_image)),
    }
    num_empty = sum(len(cell) - len(each) for cell, each in zip(cells, texts) if each)
    kept = [index for index, (each, seen) in enumerate(zip(texts, has_image)) if each and seen]
    found = rows.remove_columns(text).select(kept)
    found = found if image == "image" else found.rename_column(image, "image")
    column = [texts[index] for index in kept]
    return found.add_column("texts", column), left_out, num_empty


def encoded_cell(cell: dict[str, Any] | None) -> bool:
    """Whether an undecoded cell holds an image."""
    return cell is not None and (bool(cell.get("bytes")) or bool(cell.get("path")))


def _collect(raw: dict[str, Dataset], name: str, arguments: ImageTextDataArguments) -> ImageTexts:
    info = next(iter(raw.values())).info
    where = own_name(name) if Path(name).is_dir() else name
    data = ImageTexts(where, revision_of(info), info.license or None, {})
    for split, dataset in raw.items():
        data.splits[split], left_out, num_empty = _two_columns(dataset, arguments)
        for reason, number in left_out.items():
            data.count(split, reason, number)
        if num_empty:
            data.empty_texts[split] = num_empty
        if len(data.splits[split]) == 0:
            raise ValueError(f"the {split} split of {name!r} has no image with a text")
    return data


def load_image_texts(arguments: ImageTextDataArguments, seed: int) -> ImageTexts:
    """The splits of a run; `seed` decides the validation split where one is made.

    Raises:
        ValueError: no such data or column, or no image with a text.
    """
    name = arguments.dataset_name or ""
    options: dict[str, Any] = {"revision": arguments.dataset_revision, "built_in": BUILT_IN}
    found = load_source(name, arguments.dataset_config_name, **options)
    if arguments.test_split_name not in found and arguments.test_split_name != "test":
        raise ValueError(f"--test_split_name {arguments.test_split_name!r} is not one of {', '.join(found)}")
    data = _collect(named_splits(found, name, arguments.test_split_name), name, arguments)
    split_off_validation(data.splits, arguments, seed)
    limit_samples(data.splits, arguments, seed)
    return data


def load_image_text_split(arguments: ImageTextDataArguments, split: str) -> ImageTexts:
    """One split of the data set of `arguments`, as it names it.

    Raises:
        ValueError: there is no such split, or as `load_image_texts`.
    """
    name = arguments.dataset_name or ""
    options: dict[str, Any] = {"revision": arguments.dataset_revision, "built_in": BUILT_IN}
    found = load_source(name, arguments.dataset_config_name, **options)
    undivided = Path(name).is_dir() and is_undivided(Path(name))
    data = _collect({split: the_split(found, split, undivided=undivided)}, name, arguments)
    limit_samples(data.splits, arguments, seed=0)
    return data


class ImageTextViews(torch.utils.data.Dataset):
    """Samples of a split as tensors; the key decides the view, and which of several texts it has.

    Items hold `pixel_values` (C, H, W) uint8, `labels` (tokens,) int64 with what the tokenizer ends a text with, and
    `sample_key` (3,) int64. A plain integer index stands for `SampleKey(0, index, 0)`, and for the first text.

    Args:
        labels: token ids of all texts of each sample.
        processor: brings images onto the canvas.
        random_shift: pixels by which an image is moved at most; None of views that are not random.
    """

    def __init__(
        self,
        split: Dataset,
        labels: list[list[list[int]]],
        processor: HfViTImageProcessor,
        random_shift: int | None = None,
        seed: int = 0,
    ):
        self.split = split
        self.labels = labels
        self.processor = processor
        self.random_shift = random_shift
        self.seed = seed
        self.num_channels = 1 if processor.do_convert_grey else 3
        canvas_bytes = self.num_channels * processor.size["height"] * processor.size["width"]
        self.kept: dict[int, torch.Tensor] | None = {} if canvas_bytes * len(split) <= _KEPT_BYTES else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> dict[str, torch.Tensor]:
        chosen = key if isinstance(key, tuple) else SampleKey(0, int(key), 0)
        pixels, labels = self._pixels(chosen.index), self.labels[chosen.index]
        text = labels[0]
        if self.random_shift is not None:
            generator = np.random.default_rng(seed_of(self.seed, *chosen))
            text = labels[generator.integers(len(labels))]
            pixels = self._shifted(pixels, *generator.integers(-self.random_shift, self.random_shift + 1, 2))
        return {"pixel_values": pixels, "labels": torch.tensor(text), "sample_key": torch.tensor(chosen)}

    def _pixels(self, index: int) -> torch.Tensor:
        """The image on its canvas, decoded once where all of the split fit into memory."""
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        image = decode(self.split[index]["image"], index, self.num_channels)
        plain: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        pixels = torch.from_numpy(self.processor(image, **plain)["pixel_values"][0].astype(np.uint8))
        if self.kept is not None:
            self.kept[index] = pixels
        return pixels

    def _shifted(self, pixels: torch.Tensor, down: int, right: int) -> torch.Tensor:
        """The canvas moved, what comes in filled with the mean colour."""
        if not down and not right:
            return pixels
        fill = [round(255 * value) for value in self.processor.image_mean]
        moved = pixels.new_tensor(fill)[:, None, None].repeat(1, *pixels.shape[1:])
        (to_rows, rows), (to_columns, columns) = _moved(down), _moved(right)
        moved[:, to_rows, to_columns] = pixels[:, rows, columns]
        return moved


def _moved(by: int) -> tuple[slice, slice]:
    """Where the pixels of a side go, and which they are."""
    return slice(max(by, 0), min(by, 0) or None), slice(max(-by, 0), min(-by, 0) or None)


def encode(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Token ids of all texts of each sample."""
    flat = tokenizer(text_target=[text for each in texts for text in each])["input_ids"]
    ids = iter(flat)
    return [[next(ids) for _ in each] for each in texts]


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Items to a batch: `pixel_values` (B, C, H, W) uint8, `labels` (B, tokens; -100 fills up) and `sample_key`
    (B, 3)."""
    labels = pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORED)
    stacked = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "sample_key")}
    return {**stacked, "labels": labels}
