"""Metrics of generated text: sacreBLEU's, and exact match.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF
from torch.nn import functional as F

from hf_vit.tasks.metrics import TEXT, Counter, Metric

# Of a text: one reference, or several, of which each text may have another number.
References = Sequence[str] | Sequence[Sequence[str]]


def _several(references: References) -> list[list[str]]:
    return [[each] if isinstance(each, str) else list(each) for each in references]


class _TextCounter(Counter):
    """Keeps the texts: what a corpus score adds up of them is sacreBLEU's own business."""

    def __init__(self) -> None:
        self.state = {"predictions": [], "references": []}

    def update(self, predictions: Sequence[str], references: References) -> None:
        self.state["predictions"] += predictions
        self.state["references"] += _several(references)

    def _columns(self) -> Any:
        """The references as sacreBLEU takes them: the first of each text, the second, ..., None where it has none."""
        most = max(map(len, self.state["references"]), default=1)
        return [[each[i] if i < len(each) else None for each in self.state["references"]] for i in range(most)]


class BleuCounter(_TextCounter):
    """`lowercase` compares as the older papers on small data do; the tokenisation is sacreBLEU's 13a."""

    def __init__(self, lowercase: bool = False):
        super().__init__()
        self.lowercase = lowercase

    def compute(self) -> dict[str, Any]:
        metric = BLEU(lowercase=self.lowercase)
        score = metric.corpus_score(self.state["predictions"], self._columns())
        return {"bleu": score.score, "signature": str(metric.get_signature())}


class ChrfCounter(_TextCounter):
    def compute(self) -> dict[str, Any]:
        metric = CHRF()
        score = metric.corpus_score(self.state["predictions"], self._columns())
        return {"chrf": score.score, "signature": str(metric.get_signature())}


class ExactMatchCounter(Counter):
    def __init__(self) -> None:
        self.state = {"hits": 0, "count": 0}

    def update(self, predictions: Sequence[str], references: References) -> None:
        self.state["hits"] += sum(p in r for p, r in zip(predictions, _several(references)))
        self.state["count"] += len(references)

    def compute(self) -> dict[str, Any]:
        return {"exact_match": self.state["hits"] / self.state["count"]}


class _TextMetric(Metric):
    inputs: ClassVar = {"predictions": TEXT, "references": TEXT}


class Bleu(_TextMetric):
    description = "Corpus BLEU in 0..100 with its signature (Post, arXiv 1804.08771)."
    counter = BleuCounter


class Chrf(_TextMetric):
    description = "Corpus chrF2 in 0..100 with its signature (Popović, W15-3049)."
    counter = ChrfCounter


class ExactMatch(_TextMetric):
    description = "Part of the predictions that are the reference, or one of them, character for character."
    counter = ExactMatchCounter


def token_statistics(logits: torch.Tensor, labels: torch.Tensor, ignored: int = -100) -> dict[str, torch.Tensor]:
    """Return what perplexity needs of each sample: `log_probability` (B,) of all its labels, and `num_tokens` (B,).

    Args:
        logits: (B, target tokens, vocabulary).
        labels: (B, target tokens); `ignored` ones do not count.
    """
    loss = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=ignored, reduction="none")
    return {"log_probability": -loss.sum(1), "num_tokens": (labels != ignored).sum(1)}


class PerplexityCounter(Counter):
    """Counts what `token_statistics` gives, as arrays.

    `compute` gives `loss`, the mean negative log-likelihood of a token in nats, and `perplexity`, its exponential.
    """

    def __init__(self) -> None:
        self.state = {"log_probability": 0.0, "num_tokens": 0}

    def update(self, log_probability: np.ndarray, num_tokens: np.ndarray) -> None:
        self.state["log_probability"] += float(log_probability.sum(dtype=np.float64))
        self.state["num_tokens"] += int(num_tokens.sum())

    def compute(self) -> dict[str, Any]:
        loss = -self.state["log_probability"] / max(self.state["num_tokens"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def text_metrics(predictions: Sequence[str], references: References, *, detailed: bool = False) -> dict[str, Any]:
    """bleu, chrf and exact_match against one reference each or several; with `detailed` also bleu_lowercase, and the
    signatures."""
    counters = {"bleu": BleuCounter(), "chrf": ChrfCounter(), "exact_match": ExactMatchCounter()}
    if detailed:
        counters["bleu_lowercase"] = BleuCounter(lowercase=True)
    found = {}
    for name, counter in counters.items():
        counter.update(predictions=predictions, references=references)
        found[name] = counter.compute()
    metrics = {name: result["bleu" if name == "bleu_lowercase" else name] for name, result in found.items()}
    if detailed:
        signed = ("bleu", "bleu_lowercase", "chrf")
        metrics["signatures"] = {name: found[name]["signature"] for name in signed}
    return metrics
