"""Metrics of classification as `evaluate` modules that need no network.

They take what one pass over the logits leaves of each sample (`statistics`), not the logits: for 1,000 classes and
50,000 samples that is 2 MB instead of 200.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

TOP_K = 5
# Of a model with a distillation token: the fields of its outputs, ours and those of transformers' DeiT.
HEADS = {"class": ("class_logits", "cls_logits"), "distillation": ("distillation_logits",)}
_INTEGER, _NUMBER = datasets.Value("int64"), datasets.Value("float32")


def statistics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the metrics need of each sample, on the device of the logits.

    Args:
        logits: (B, num_classes).
        labels: class indices (B,).

    Returns:
        `ranked` (B, min(5, num_classes)): classes from the likeliest on; `confidence` (B,): the first one's
        probability; `log_probability` (B,): of the true class; `labels` (B,).
    """
    log_probabilities = logits.float().log_softmax(-1)
    highest, ranked = log_probabilities.topk(min(TOP_K, logits.shape[-1]))
    true = log_probabilities.gather(1, labels[:, None])[:, 0]
    return {"ranked": ranked, "confidence": highest[:, 0].exp(), "log_probability": true, "labels": labels}


def head_logits(outputs: Any) -> dict[str, torch.Tensor]:
    """Logits (B, num_classes) of each head where there are two."""
    named = [(head, getattr(outputs, field, None)) for head, fields in HEADS.items() for field in fields]
    return {head: logits for head, logits in named if logits is not None}


def output_statistics(outputs: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """`statistics` of a model's `logits` and, named `HEAD/...`, of each head where there are two."""
    found = statistics(outputs.logits, labels)
    for head, logits in head_logits(outputs).items():
        found.update({f"{head}/{name}": value for name, value in statistics(logits, labels).items()})
    return found


class Metric(evaluate.Metric):
    """A metric of this package, without files and locks."""

    description: ClassVar[str]
    inputs: ClassVar[Mapping[str, Any]] = {"predictions": _INTEGER, "references": _INTEGER}

    def __init__(self, **kwargs):
        # No file and no lock for predictions that fit in memory.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        numbers = all(feature in (_INTEGER, _NUMBER) for feature in self.inputs.values())
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=str(dict(self.inputs)),
            features=datasets.Features(self.inputs),
            format="numpy" if numbers else None,
        )


class TopKAccuracy(Metric):
    """`predictions` are classes from the likeliest on, at least `k` of them."""

    description = "Part of the samples whose class is among the k likeliest."
    inputs: ClassVar = {"predictions": datasets.List(_INTEGER), "references": _INTEGER}

    def _compute(self, predictions, references, k: int = 1):
        hits = (np.asarray(predictions)[:, :k] == np.asarray(references)[:, None]).any(axis=1)
        return {"accuracy" if k == 1 else f"top{k}_accuracy": float(hits.mean())}


class NegativeLogLikelihood(Metric):
    """`predictions` are the log-probabilities that were given to the true classes."""

    description = "Mean negative log-likelihood of the true class, in nats: the cross entropy."
    inputs: ClassVar = {"predictions": _NUMBER}

    def _compute(self, predictions):
        return {"loss": -float(predictions.astype(np.float64).mean())}


class ExpectedCalibrationError(Metric):
    """Also gives `calibration`: mean confidence, accuracy and samples of each bin that has any."""

    description = (
        "Mean gap between confidence and accuracy over bins of equal width, weighted by their samples "
        "(Guo et al., arXiv 1706.04599)."
    )
    inputs: ClassVar = {"predictions": _INTEGER, "references": _INTEGER, "confidences": _NUMBER}

    def _compute(self, predictions, references, confidences, num_bins: int = 15):
        # Bins are open below and closed above, as in the paper.
        bins = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)
        counts = np.bincount(bins, minlength=num_bins)
        hits = np.bincount(bins, weights=predictions == references, minlength=num_bins)
        confidence = np.bincount(bins, weights=confidences.astype(np.float64), minlength=num_bins)
        rows = [
            {"confidence": confidence[i] / counts[i], "accuracy": hits[i] / counts[i], "num_examples": int(counts[i])}
            for i in np.flatnonzero(counts)
        ]
        return {
            "expected_calibration_error": float(np.abs(hits - confidence).sum() / len(references)),
            "calibration": rows,
        }


class PerClassReport(Metric):
    description = "Precision, recall, F1 and support of each class, and the macro average of F1."

    def _compute(self, predictions, references, class_names: Sequence[str]):
        labels = np.arange(len(class_names))
        values = precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
        rows = [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(class_names, *values)
        ]
        return {"f1_macro": float(values[2].mean()), "per_class": rows}


class ConfusionMatrix(Metric):
    description = "Counts by true class (row) and predicted class (column)."

    def _compute(self, predictions, references, num_classes: int):
        return {"confusion_matrix": confusion_matrix(references, predictions, labels=np.arange(num_classes)).tolist()}


def classification_metrics(
    gathered: Mapping[str, np.ndarray], class_names: Sequence[str], *, detailed: bool = False
) -> dict[str, Any]:
    """loss, accuracy and, from six classes on, top5_accuracy; the same of each head in `heads` where there are two.

    With `detailed` every other metric of this module as well.

    Args:
        gathered: the `output_statistics` of all samples, as arrays.
    """
    metrics = _metrics_of(gathered, "", class_names, detailed)
    heads = {
        head: _metrics_of(gathered, f"{head}/", class_names, detailed)
        for head in HEADS
        if f"{head}/ranked" in gathered
    }
    return {**metrics, "heads": heads} if heads else metrics


def _metrics_of(
    gathered: Mapping[str, np.ndarray], prefix: str, class_names: Sequence[str], detailed: bool
) -> dict[str, Any]:
    found = {name: gathered[prefix + name] for name in ("ranked", "confidence", "log_probability", "labels")}
    ranked = {"predictions": found["ranked"], "references": found["labels"]}
    metrics = NegativeLogLikelihood().compute(predictions=found["log_probability"])
    metrics.update(TopKAccuracy().compute(**ranked))
    if len(class_names) > TOP_K:
        metrics.update(TopKAccuracy().compute(**ranked, k=TOP_K))
    if detailed:
        chosen = {"predictions": found["ranked"][:, 0], "references": found["labels"]}
        metrics.update(ExpectedCalibrationError().compute(**chosen, confidences=found["confidence"]))
        metrics.update(PerClassReport().compute(**chosen, class_names=class_names))
        metrics.update(ConfusionMatrix().compute(**chosen, num_classes=len(class_names)))
    return metrics
