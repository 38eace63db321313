"""Metrics of classification, counted from what one pass over the logits leaves of each sample (`statistics`).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from hf_vit.tasks.image_classification.imbalance import mean_recall
from hf_vit.tasks.metrics import INTEGER, NUMBER, Counter, Metric

TOP_K = 5
# Of a model with a distillation token: the fields of its outputs, ours and those of transformers' DeiT.
HEADS = {"class": ("class_logits", "cls_logits"), "distillation": ("distillation_logits",)}


def statistics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the metrics need of each sample, on the device of the logits.

    Args:
        logits: (B, C).
        labels: class indices (B,).

    Returns:
        `ranked` (B, min(5, C)): classes from the likeliest on; `confidence` (B,): the first one's
        probability; `log_probability` (B,): of the true class; `labels` (B,).
    """
    log_probabilities = logits.float().log_softmax(-1)
    highest, ranked = log_probabilities.topk(min(TOP_K, logits.shape[-1]))
    true = log_probabilities.gather(1, labels[:, None])[:, 0]
    return {"ranked": ranked, "confidence": highest[:, 0].exp(), "log_probability": true, "labels": labels}


def head_logits(outputs: Any) -> dict[str, torch.Tensor]:
    """Logits (B, C) of each head where there are two."""
    named = [(head, getattr(outputs, field, None)) for head, fields in HEADS.items() for field in fields]
    return {head: logits for head, logits in named if logits is not None}


class TopKCounter(Counter):
    def __init__(self, k: int = 1):
        self.k = k
        self.state = {"hits": 0, "count": 0}

    def update(self, predictions: np.ndarray, references: np.ndarray) -> None:
        hits = (np.asarray(predictions)[:, : self.k] == np.asarray(references)[:, None]).any(axis=1)
        self.state["hits"] += int(hits.sum())
        self.state["count"] += len(hits)

    def compute(self) -> dict[str, Any]:
        name = "accuracy" if self.k == 1 else f"top{self.k}_accuracy"
        return {name: self.state["hits"] / self.state["count"]}


class TopKAccuracy(Metric):
    """`predictions` are classes from the likeliest on, at least `k` of them."""

    description = "Part of the samples whose class is among the k likeliest."
    counter = TopKCounter
    inputs: ClassVar = {"predictions": datasets.List(INTEGER), "references": INTEGER}


class LogLikelihoodCounter(Counter):
    def __init__(self) -> None:
        self.state = {"sum": 0.0, "count": 0}

    def update(self, predictions: np.ndarray) -> None:
        self.state["sum"] += float(predictions.sum(dtype=np.float64))
        self.state["count"] += len(predictions)

    def compute(self) -> dict[str, Any]:
        return {"loss": -self.state["sum"] / self.state["count"]}


class NegativeLogLikelihood(Metric):
    """`predictions` are the log-probabilities that were given to the true classes."""

    description = "Mean negative log-likelihood of the true class, in nats: the cross entropy."
    counter = LogLikelihoodCounter
    inputs: ClassVar = {"predictions": NUMBER}


class CalibrationCounter(Counter):
    def __init__(self, num_bins: int = 15):
        self.num_bins = num_bins
        self.state = {
            "counts": np.zeros(num_bins, np.int64),
            "hits": np.zeros(num_bins, np.int64),
            "confidence": np.zeros(num_bins),
        }

    def update(self, predictions: np.ndarray, references: np.ndarray, confidences: np.ndarray) -> None:
        # Bins are open below and closed above, as in the paper.
        bins = np.clip(np.ceil(confidences * self.num_bins).astype(int) - 1, 0, self.num_bins - 1)
        self.state["counts"] += np.bincount(bins, minlength=self.num_bins)
        self.state["hits"] += np.bincount(bins[predictions == references], minlength=self.num_bins)
        weights = confidences.astype(np.float64)
        self.state["confidence"] += np.bincount(bins, weights=weights, minlength=self.num_bins)

    def compute(self) -> dict[str, Any]:
        counts, hits, confidence = (self.state[name] for name in ("counts", "hits", "confidence"))
        rows = [
            {
                "confidence": float(confidence[i] / counts[i]),
                "accuracy": float(hits[i] / counts[i]),
                "num_examples": int(counts[i]),
            }
            for i in np.flatnonzero(counts)
        ]
        error = float(np.abs(hits - confidence).sum() / counts.sum())
        return {"expected_calibration_error": error, "calibration": rows}


class ExpectedCalibrationError(Metric):
    """Also gives `calibration`: mean confidence, accuracy and samples of each bin that has any."""

    description = (
        "Mean gap between confidence and accuracy over bins of equal width, weighted by their samples "
        "(Guo et al., arXiv 1706.04599)."
    )
    counter = CalibrationCounter
    inputs: ClassVar = {"predictions": INTEGER, "references": INTEGER, "confidences": NUMBER}


class ConfusionCounter(Counter):
    def __init__(self, num_classes: int):
        self.state = {"matrix": np.zeros((num_classes, num_classes), np.int64)}

    def update(self, predictions: np.ndarray, references: np.ndarray) -> None:
        np.add.at(self.state["matrix"], (references, predictions), 1)

    def compute(self) -> dict[str, Any]:
        return {"confusion_matrix": self.state["matrix"].tolist()}


class ConfusionMatrix(Metric):
    description = "Counts by true class (row) and predicted class (column)."
    counter = ConfusionCounter


class PerClassCounter(ConfusionCounter):
    def __init__(self, class_names: Sequence[str]):
        super().__init__(len(class_names))
        self.class_names = class_names

    def compute(self) -> dict[str, Any]:
        return per_class_report(self.state["matrix"], self.class_names)


class PerClassReport(Metric):
    description = "Precision, recall, F1 and support of each class, and the macro average of F1."
    counter = PerClassCounter


def per_class_report(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """`balanced_accuracy`, `f1_macro` and `per_class` from counts by true and predicted class; of nothing, a fraction
    is 0."""
    right, support, chosen = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    precision = right / np.maximum(chosen, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + chosen, 1)
    rows = [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(class_names, precision, recall, f1, support)
    ]
    return {"balanced_accuracy": mean_recall(matrix), "f1_macro": float(f1.mean()), "per_class": rows}


class ClassificationCounter(Counter):
    """loss, accuracy and, from six classes on, top5_accuracy; with `detailed` every other metric of this module, with
    `by_class` balanced_accuracy and f1_macro alone of these."""

    def __init__(self, class_names: Sequence[str], *, detailed: bool = False, by_class: bool = False):
        self.class_names = class_names
        ranks = (1, TOP_K) if len(class_names) > TOP_K else (1,)
        self.loss = LogLikelihoodCounter()
        self.accuracies = {f"top{k}": TopKCounter(k) for k in ranks}
        self.detailed: dict[str, Any] = {"calibration": CalibrationCounter()} if detailed else {}
        self.confusion = ConfusionCounter(len(class_names)) if detailed or by_class else None
        self.state = {name: counter.state for name, counter in self._counters.items()}

    @property
    def _counters(self) -> dict[str, Counter]:
        confusion = {} if self.confusion is None else {"confusion": self.confusion}
        return {"loss": self.loss, **self.accuracies, **self.detailed, **confusion}

    def update(
        self, ranked: np.ndarray, confidence: np.ndarray, log_probability: np.ndarray, labels: np.ndarray
    ) -> None:
        """Count what `statistics` gives, as arrays."""
        self.loss.update(log_probability)
        for counter in self.accuracies.values():
            counter.update(ranked, labels)
        if self.detailed:
            self.detailed["calibration"].update(ranked[:, 0], labels, confidence)
        if self.confusion is not None:
            self.confusion.update(ranked[:, 0], labels)

    def compute(self) -> dict[str, Any]:
        metrics = {name: value for counter in self._counters.values() for name, value in counter.compute().items()}
        if self.confusion is not None:
            metrics.update(per_class_report(self.confusion.state["matrix"], self.class_names))
        if not self.detailed:
            return {name: value for name, value in metrics.items() if name not in ("confusion_matrix", "per_class")}
        return metrics
