"""Evaluation of a model that writes texts of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_vit.tasks.generation import TextEvaluator
from hf_vit.tasks.task import Batch
from hf_vit.vision.decoding import decode
from hf_vit.vision.processors import normalize

MAX_SAMPLE_SIDE = 512  # pixels


class ImageToTextEvaluator(TextEvaluator):
    """Perplexity of the first text of each image, and BLEU, chrF and exact match of what is generated against all of
    them, greedily and, where final, by beam search.

    Args:
        split: with the columns `image`, undecoded, and `texts`.
        processor: normalises the batches.
        tokenizer, max_length, options: see `TextEvaluator`.
    """

    def __init__(
        self, split: Dataset, processor: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, **options: Any
    ):
        super().__init__(tokenizer, max_length, **options)
        self.split = split
        self.processor = processor

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixel_values": normalize(batch["pixel_values"], self.processor)}

    def references(self, indices: list[int]) -> list[list[str]]:
        return self.split[indices]["texts"]

    def predictions(self) -> Iterator[dict[str, Any]]:
        texts = self.split["texts"]
        for row in self.ordered():
            index = self.state["index"][row]
            told = {"index": index, "texts": texts[index]}
            yield told | {f"{prefix}prediction": found[row] for prefix, found in self.generated().items()}

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Evenly spaced images of the split as PNG, and the texts that the saved model writes: by its beams."""
        rows, texts = self.ordered(), list(self.generated().values())[-1]
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, self.num_samples).astype(int))]
        samples = []
        for number, row in enumerate(chosen):
            index = self.state["index"][row]
            sample = self.split[index]
            picture = decode(sample["image"], index)
            picture.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
            name = f"sample_{number}.png"
            picture.save(folder / name)
            samples.append({"file": name, "texts": sample["texts"], "prediction": texts[row]})
        return samples
