"""Evaluation of a translator on a split of pairs of texts.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_vit.tasks.generation import as_loaded
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.tasks.text_metrics import PerplexityCounter, text_metrics, token_statistics
from hf_vit.tasks.translation.data import IGNORED

NUM_LENGTH_GROUPS = 4


def forward_pass(model: Any, batch: Batch, maker: Any = None) -> Any:
    """Outputs of the model for a batch whose targets it reads as it should write them.

    Args:
        maker: the model that makes the decoder's input of labels, where `model` is wrapped.
    """
    decoder_input_ids = (maker or model).prepare_decoder_input_ids_from_labels(batch["labels"])
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=decoder_input_ids,
        use_cache=False,
    )


class TranslationEvaluator(Evaluator):
    """Perplexity, and BLEU, chrF and exact match of greedy translations and, where final, of those by beam search.

    Args:
        pairs: the split, with the columns `source` and `target`.
        tokenizer: of the target.
        max_length: most tokens that are generated for a text.
        final: measure `num_beams` beams too, and every metric.
        num_samples: how many `save_samples` gives.
        num_hypotheses: keep so many translations of each text with their scores, at most `num_beams`, of which there
            must be several; none when 0.
        by_length: measure BLEU and chrF by the length of the source as well.
        best: the metric that a headline tells.
    """

    def __init__(
        self,
        pairs: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        final: bool,
        num_beams: int = 1,
        num_samples: int = 0,
        num_hypotheses: int = 0,
        by_length: bool = False,
        best: str = "bleu",
    ):
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.final = final
        self.num_beams = num_beams if final else 1
        self.num_samples = num_samples
        self.num_hypotheses = num_hypotheses
        self.by_length = by_length
        self.best = best
        self.perplexity = PerplexityCounter()
        self.state = {"perplexity": self.perplexity.state, "index": [], "greedy": []}
        if self.num_beams > 1:
            self.state["beam"] = []  # of each text, its best translation, or (score, translation) of the best ones

    def step(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Statistics for perplexity and, as token ids, `greedy` (B, tokens), and `beam` (B * hypotheses, tokens) with
        `scores` (B * hypotheses,) where they are kept."""
        result = token_statistics(forward_pass(model, batch).logits, batch["labels"], IGNORED)
        result["greedy"] = self._generate(model, batch, num_beams=1)
        if self.num_hypotheses:
            options = {"num_return_sequences": self.num_hypotheses, "output_scores": True}
            found = self._generate(model, batch, self.num_beams, return_dict_in_generate=True, **options)
            result.update(beam=found.sequences[:, 1:], scores=found.sequences_scores)
        elif self.num_beams > 1:
            result["beam"] = self._generate(model, batch, self.num_beams)
        return result

    def _generate(self, model: Any, batch: Batch, num_beams: int, **more: Any) -> Any:
        options: dict[str, Any] = {"num_beams": num_beams, "do_sample": False}
        options.update(max_length=1 + self.max_length, max_new_tokens=None)
        options.update(num_return_sequences=1, return_dict_in_generate=False)  # whatever a checkpoint asks for
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with as_loaded(model):
            generated = model.generate(**inputs, **{**options, **more})
        return generated if more else generated[:, 1:]  # without what the decoder starts with

    def update(self, batch: Batch, outputs: dict[str, torch.Tensor]) -> None:
        found = {name: value.cpu().numpy() for name, value in outputs.items()}
        indices = batch["sample_key"][:, 1].tolist()
        self.perplexity.update(found["log_probability"], found["num_tokens"])
        self.state["index"] += indices
        self.state["greedy"] += self._texts(found["greedy"], indices)
        if self.num_hypotheses:
            repeated = [index for index in indices for _ in range(self.num_hypotheses)]
            texts, scores = self._texts(found["beam"], repeated), found["scores"].tolist()
            rows = list(zip(scores, texts))
            starts = range(0, len(rows), self.num_hypotheses)
            self.state["beam"] += [rows[start : start + self.num_hypotheses] for start in starts]
        elif self.num_beams > 1:
            self.state["beam"] += self._texts(found["beam"], indices)

    def _texts(self, token_ids: np.ndarray, indices: list[int]) -> list[str]:
        """The generated texts; that of an empty source is empty, as in the translation pipeline."""
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        sources = self.pairs[indices]["source"]
        return [text.strip() if source else "" for text, source in zip(texts, sources)]

    def _translations(self) -> dict[str, list[str]]:
        """The texts that are measured, by what the names of their metrics begin with."""
        found = {"": self.state["greedy"]}
        if self.num_beams > 1:
            best = [each[0][1] if self.num_hypotheses else each for each in self.state["beam"]]
            found[f"beam{self.num_beams}_"] = best
        return found

    def compute(self) -> dict[str, Any]:
        columns = self.pairs[self.state["index"]]
        metrics = self.perplexity.compute()
        for prefix, texts in self._translations().items():
            found = text_metrics(texts, columns["target"], detailed=self.final)
            if prefix:
                del found["signatures"]
            metrics.update({f"{prefix}{name}": value for name, value in found.items()})
        if self.by_length:
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
            for prefix, texts in self._translations().items():
                found = text_metrics([texts[i] for i in members], [references[i] for i in members])
                row.update({f"{prefix}{name}": found[name] for name in ("bleu", "chrf")})
            rows.append(row)
        return rows

    def headline(self, metrics: Mapping[str, Any]) -> str:
        if self.best == "exact_match":
            return f"exact_match {metrics['exact_match']:.2%}"
        return f"bleu {metrics['bleu']:.2f}, chrf {metrics['chrf']:.2f}"

    def _ordered(self) -> np.ndarray:
        return np.argsort(self.state["index"], kind="stable")

    def predictions(self) -> Iterator[dict[str, Any]]:
        for row in self._ordered():
            index = self.state["index"][row]
            told = {"index": index, **self.pairs[index]}
            for prefix, texts in self._translations().items():
                told[f"{prefix}prediction"] = texts[row]
            if self.num_hypotheses:
                best = self.state["beam"][row]
                told["hypotheses"] = [{"text": text, "score": score} for score, text in best]
            yield told

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Evenly spaced texts of the split, with the translations that the saved model gives: by its beams."""
        rows, texts = self._ordered(), list(self._translations().values())[-1]
        chosen = rows[np.linspace(0, len(rows) - 1, self.num_samples).astype(int)]
        found = [{**self.pairs[self.state["index"][row]], "prediction": texts[row]} for row in chosen]
        return [{**each, "num_beams": self.num_beams} for each in found]
