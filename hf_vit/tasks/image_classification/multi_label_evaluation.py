"""Evaluation of a classifier that gives an image several labels; the metrics are scikit-learn's.

Shapes: B batch, N images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, precision_recall_fscore_support
from torch.nn import functional as F

from hf_vit.tasks.image_classification.evaluation import MAX_SAMPLE_SIDE, spaced
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.vision.decoding import decode
from hf_vit.vision.processors import normalize

THRESHOLD = 0.5


class MultiLabelEvaluator(Evaluator):
    """Mean average precision, F1 and, where final, each class's own numbers, over the labels that are known.

    Args:
        images: the split, with the column `image`.
        thresholds: probabilities from which on a label is given, (C,); 0.5 for each by default.
        num_samples: how many `save_samples` saves.
    """

    def __init__(
        self,
        images: Dataset,
        class_names: list[str],
        processor: Any,
        *,
        final: bool,
        thresholds: Sequence[float] | None = None,
        num_samples: int = 0,
    ):
        self.images = images
        self.class_names = class_names
        self.processor = processor
        self.final = final
        self.thresholds = np.asarray(thresholds or [THRESHOLD] * len(class_names))
        self.num_samples = num_samples
        # Average precision ranks all images, so their probabilities are kept, (B, 1 + 2 C) of each batch.
        self.state = {"rows": [], "loss": 0.0, "known": 0}

    def step(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(pixel_values=normalize(batch["pixel_values"], self.processor)).logits.float()
        targets = batch["labels"]
        losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).float(), reduction="none")
        return {"probabilities": logits.sigmoid(), "loss": (losses * (targets >= 0)).double().sum()}

    def update(self, batch: Batch, outputs: dict[str, torch.Tensor]) -> None:
        targets = batch["labels"].cpu().numpy()
        columns = [np.asarray(batch["sample_key"])[:, 1:2], targets, outputs["probabilities"].cpu().numpy()]
        self.state["rows"].append(np.concatenate(columns, axis=1).astype(np.float64))
        self.state["loss"] += float(outputs["loss"])
        self.state["known"] += int((targets >= 0).sum())

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets and probabilities of all images in the split's order, (N, C) each."""
        rows = np.concatenate(self.state["rows"])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        middle = 1 + len(self.class_names)
        return rows[:, 1:middle].astype(int), rows[:, middle:]

    def compute(self) -> dict[str, Any]:
        targets, probabilities = self.counted()
        metrics = {"loss": self.state["loss"] / max(self.state["known"], 1)}
        return {**metrics, **multi_label_metrics(targets, probabilities, self.thresholds, self._names)}

    @property
    def _names(self) -> list[str] | None:
        return self.class_names if self.final else None

    def headline(self, metrics: Mapping[str, Any]) -> str:
        return f"mAP {metrics['mean_average_precision']:.2%}, F1 {metrics['f1_macro']:.2%}"

    def _told(self, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        given = probabilities >= self.thresholds
        return {"label": self._joined(targets == 1), "prediction": self._joined(given)}

    def _joined(self, chosen: np.ndarray) -> str:
        return ", ".join(self.class_names[index] for index in np.flatnonzero(chosen)) or "none"

    def predictions(self) -> Iterator[dict[str, Any]]:
        for index, (targets, probabilities) in enumerate(zip(*self.counted())):
            file = (self.images[index]["image"] or {}).get("path")
            scores = dict(zip(self.class_names, map(float, probabilities)))
            yield {
                "index": index,
                **({"file": file} if file else {}),
                **self._told(targets, probabilities),
                "scores": scores,
            }

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Evenly spaced images of the split as PNG, large ones made smaller, with their labels."""
        targets, probabilities = self.counted()
        samples = []
        for number, index in enumerate(spaced(np.arange(len(targets)), min(self.num_samples, len(targets)))):
            picture = decode(self.images[int(index)]["image"], int(index))
            picture.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
            picture.save(folder / f"sample_{number}.png")
            samples.append({"file": f"sample_{number}.png", **self._told(targets[index], probabilities[index])})
        return samples


def multi_label_metrics(
    targets: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """`mean_average_precision` over the classes that occur, `f1_macro` and `f1_micro` and, with names, `per_class`.

    Args:
        targets: 1, 0 or -1 where it is not known, which counts nowhere; (N, C).
        probabilities: (N, C).
        thresholds: (C,).
    """
    rows = []
    for index in range(targets.shape[1]):
        known = targets[:, index] >= 0
        truth, scores = targets[known, index], probabilities[known, index]
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, scores >= thresholds[index], average="binary", zero_division=0
        )
        occurs = bool(truth.any())
        rows.append(
            {
                "average_precision": float(average_precision_score(truth, scores)) if occurs else None,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(truth.sum()),
                "threshold": float(thresholds[index]),
            }
        )
    known = targets >= 0
    found = [row["average_precision"] for row in rows if row["average_precision"] is not None]
    micro = f1_score(targets[known], (probabilities >= thresholds)[known], zero_division=0)
    metrics: dict[str, Any] = {
        "mean_average_precision": float(np.mean(found)) if found else 0.0,
        "f1_macro": float(np.mean([row["f1"] for row in rows])),
        "f1_micro": float(micro),
    }
    if class_names is not None:
        metrics["per_class"] = [{"label": name, **row} for name, row in zip(class_names, rows)]
    return metrics


def best_thresholds(targets: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """The threshold of each class with the best F1 over its known labels, (C,); 0.5 where it never occurs."""
    found = []
    for index in range(targets.shape[1]):
        known = targets[:, index] >= 0
        truth, scores = targets[known, index], probabilities[known, index]
        if not truth.any():
            found.append(THRESHOLD)
            continue
        precision, recall, thresholds = precision_recall_curve(truth, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        found.append(float(thresholds[int(f1[:-1].argmax())]))
    return found
