"""Evaluation of a translator on a split of pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_vit.tasks.generation import TextEvaluator
from hf_vit.tasks.task import Batch
from hf_vit.tasks.text_metrics import text_metrics

NUM_LENGTH_GROUPS = 4


class TranslationEvaluator(TextEvaluator):
    """Perplexity, and BLEU, chrF and exact match of greedy translations and, where final, of those by beam search.

    Args:
        pairs: the split, with the columns `source` and `target`.
        tokenizer: of the target.
        max_length: most tokens that are generated for a text.
        by_length: measure BLEU and chrF by the length of the source as well.
        options: see `TextEvaluator`.
    """

    def __init__(
        self,
        pairs: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        by_length: bool = False,
        **options: Any,
    ):
        super().__init__(tokenizer, max_length, **options)
        self.pairs = pairs
        self.by_length = by_length

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def references(self, indices: list[int]) -> list[str]:
        return self.pairs[indices]["target"]

    def texts(self, token_ids: np.ndarray, indices: list[int]) -> list[str]:
        """The generated texts; that of an empty source is empty, as in the translation pipeline."""
        sources = self.pairs[indices]["source"]
        return [text if source else "" for text, source in zip(super().texts(token_ids, indices), sources)]

    def compute(self) -> dict[str, Any]:
        metrics = super().compute()
        if self.by_length:
            columns = self.pairs[self.state["index"]]
            metrics["by_source_length"] = self._by_length(columns["source"], columns["target"])
        return metrics

    def _by_length(self, sources: list[str], references: list[str]) -> list[dict[str, Any]]:
        """BLEU and chrF of texts of like length: `characters` of the shortest and longest source of each group. The
        groups are as large as each other but for sources of equal length, which are not parted."""
        lengths = np.array([len(source) for source in sources])
        bounds = np.quantile(lengths, np.arange(1, NUM_LENGTH_GROUPS) / NUM_LENGTH_GROUPS)
        groups = np.searchsorted(bounds, lengths)
        rows = []
        for members in (np.flatnonzero(groups == group) for group in np.unique(groups)):
            row: dict[str, Any] = {"characters": [int(lengths[members].min()), int(lengths[members].max())]}
            row["num_examples"] = len(members)
            for prefix, texts in self.generated().items():
                found = text_metrics([texts[i] for i in members], [references[i] for i in members])
                row.update({f"{prefix}{name}": found[name] for name in ("bleu", "chrf")})
            rows.append(row)
        return rows

    def predictions(self) -> Iterator[dict[str, Any]]:
        for row in self.ordered():
            index = self.state["index"][row]
            told = {"index": index, **self.pairs[index]}
            for prefix, texts in self.generated().items():
                told[f"{prefix}prediction"] = texts[row]
            if self.num_hypotheses:
                best = self.state["beam"][row]
                told["hypotheses"] = [{"text": text, "score": score} for score, text in best]
            yield told

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Evenly spaced texts of the split, with the translations that the saved model gives: by its beams."""
        rows, texts = self.ordered(), list(self.generated().values())[-1]
        chosen = rows[np.linspace(0, len(rows) - 1, self.num_samples).astype(int)]
        found = [{**self.pairs[self.state["index"][row]], "prediction": texts[row]} for row in chosen]
        return [{**each, "num_beams": self.num_beams} for each in found]
