"""Metrics of generated text as `evaluate` modules that need no network: sacreBLEU's, and exact match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF
from torch.nn import functional as F

from hf_vit.tasks.image_classification.metrics import Metric

_TEXT = datasets.Value("string")


class _TextMetric(Metric):
    inputs: ClassVar = {"predictions": _TEXT, "references": _TEXT}


class Bleu(_TextMetric):
    """`lowercase` compares as the older papers on small data do; the tokenisation is sacreBLEU's 13a."""

    description = "Corpus BLEU in 0..100 with its signature (Post, arXiv 1804.08771)."

    def _compute(self, predictions, references, lowercase: bool = False):
        metric = BLEU(lowercase=lowercase)
        score = metric.corpus_score(predictions, [references])
        return {"bleu": score.score, "signature": str(metric.get_signature())}


class Chrf(_TextMetric):
    description = "Corpus chrF2 in 0..100 with its signature (Popović, W15-3049)."

    def _compute(self, predictions, references):
        metric = CHRF()
        score = metric.corpus_score(predictions, [references])
        return {"chrf": score.score, "signature": str(metric.get_signature())}


class ExactMatch(_TextMetric):
    description = "Part of the predictions that are the reference, character for character."

    def _compute(self, predictions, references):
        return {"exact_match": float(np.mean([p == r for p, r in zip(predictions, references)]))}


def token_statistics(logits: torch.Tensor, labels: torch.Tensor, ignored: int = -100) -> dict[str, torch.Tensor]:
    """What perplexity needs of each sample: `log_probability` (B,) of all its labels, and `num_tokens` (B,).

    Args:
        logits: (B, target tokens, vocabulary).
        labels: (B, target tokens); `ignored` ones do not count.
    """
    loss = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=ignored, reduction="none")
    return {"log_probability": -loss.sum(1), "num_tokens": (labels != ignored).sum(1)}


def text_metrics(predictions: Sequence[str], references: Sequence[str], *, detailed: bool = False) -> dict[str, Any]:
    """bleu, chrf and exact_match; with `detailed` also bleu_lowercase, and the signatures."""
    texts = {"predictions": list(predictions), "references": list(references)}
    bleu, chrf = Bleu().compute(**texts), Chrf().compute(**texts)
    metrics = {"bleu": bleu["bleu"], "chrf": chrf["chrf"], **ExactMatch().compute(**texts)}
    if detailed:
        lowercase = Bleu().compute(**texts, lowercase=True)
        signatures = {"bleu": bleu, "bleu_lowercase": lowercase, "chrf": chrf}
        metrics["bleu_lowercase"] = lowercase["bleu"]
        metrics["signatures"] = {name: result["signature"] for name, result in signatures.items()}
    return metrics


def perplexity(log_probability: np.ndarray, num_tokens: np.ndarray) -> dict[str, float]:
    """`loss`: mean negative log-likelihood of a token in nats; `perplexity`: its exponential."""
    loss = -float(log_probability.astype(np.float64).sum() / max(num_tokens.sum(), 1))
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
