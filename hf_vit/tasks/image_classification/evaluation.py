"""Evaluation of a classifier on a split of labelled images.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import ViTImageProcessor

from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor
from hf_vit.tasks.image_classification.distillation import TeacherEnsemble
from hf_vit.tasks.image_classification.metrics import ClassificationCounter, head_logits, statistics
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.vision.decoding import decode
from hf_vit.vision.processors import normalize

MAX_SAMPLE_SIDE = 512  # pixels; a camera's photos would weigh tens of MB each as PNG


class ClassificationEvaluator(Evaluator):
    """Metrics of a model's prediction and, in `heads`, of each head where there are two.

    Args:
        images: the split, with the column `image`.
        final: count what the detailed metrics need, and keep what was predicted of each sample.
        num_samples: how many `save_samples` saves.
        teachers: whose accuracy on the split is measured as well, where final.
        by_class: count balanced accuracy and macro F1 where not final, too.
        annotator: name and revision of the model that labels patches, for the record.
    """

    def __init__(
        self,
        images: Dataset,
        class_names: list[str],
        processor: ViTImageProcessor | HfViTImageProcessor,
        *,
        final: bool,
        num_samples: int = 0,
        teachers: TeacherEnsemble | None = None,
        annotator: dict[str, Any] | None = None,
        by_class: bool = False,
    ):
        self.images = images
        self.class_names = class_names
        self.processor = processor
        self.final = final
        self.num_samples = num_samples
        self.teachers = teachers if final else None
        self.annotator = annotator
        self.by_class = by_class
        self.counters: dict[str, ClassificationCounter] = {}  # by head, that of the prediction under ""
        self.state = {"heads": {}}
        if final:
            self.state["rows"] = []  # of each batch, (B, 5): index, label, prediction, confidence and loss
        if self.teachers is not None:
            self.state["right"] = np.zeros(len(self.teachers.teachers), np.int64)

    def step(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        """`heads`: `statistics` of the prediction and each head; `right` (teachers, B): whether each teacher is."""
        outputs, labels = model(pixel_values=normalize(batch["pixel_values"], self.processor)), batch["labels"]
        logits = {"": outputs.logits, **head_logits(outputs)}
        for head in logits:
            if head not in self.counters:
                self.counters[head] = ClassificationCounter(
                    self.class_names, detailed=self.final, by_class=self.by_class
                )
                self.state["heads"][head] = self.counters[head].state
        found: dict[str, Any] = {"heads": {head: statistics(each, labels) for head, each in logits.items()}}
        if self.teachers is not None:
            pixels, teachers = batch["pixel_values"].float(), self.teachers.to(labels.device).teachers
            found["right"] = torch.stack([teacher(pixels).argmax(-1) == labels for teacher in teachers])
        return found

    def update(self, batch: Batch, outputs: dict[str, Any]) -> None:
        heads = {
            head: {name: value.cpu().numpy() for name, value in found.items()}
            for head, found in outputs["heads"].items()
        }
        for head, found in heads.items():
            self.counters[head].update(**found)
        if self.teachers is not None:
            self.state["right"] += outputs["right"].sum(1).cpu().numpy()
        if self.final:
            found = heads[""]
            known = (batch["sample_key"][:, 1], found["labels"], found["ranked"][:, 0], found["confidence"])
            rows = (*known, -found["log_probability"])
            self.state["rows"].append(np.stack(rows, axis=1).astype(np.float64))

    def compute(self) -> dict[str, Any]:
        metrics = {head: counter.compute() for head, counter in self.counters.items()}
        heads = {head: found for head, found in metrics.items() if head}
        return {**metrics[""], "heads": heads} if heads else metrics[""]

    def headline(self, metrics: Mapping[str, Any]) -> str:
        balanced = f", balanced {metrics['balanced_accuracy']:.2%}" if self.by_class else ""
        return f"accuracy {metrics['accuracy']:.2%}{balanced}"

    def warning(self, metrics: Mapping[str, Any]) -> str | None:
        labels = np.bincount(np.asarray(self.images.with_format("numpy")["label"][:], dtype=np.int64))
        chance = max(1 / len(self.class_names), labels.max() / labels.sum())
        if metrics["accuracy"] > chance or chance == 1:  # where all are of one class, nothing tells
            return None
        return (
            f"accuracy {metrics['accuracy']:.2%} is no better than chance, {chance:.2%}: the model has learnt nothing "
            "that helps; train for longer, with another learning rate, or from a checkpoint (--model_name_or_path)"
        )

    def records(self) -> dict[str, Any]:
        """The teachers, with what each reaches on the split, and the annotator."""
        annotator = {} if self.annotator is None else {"annotator": self.annotator}
        if self.teachers is None:
            return annotator
        accuracies = (self.state["right"] / len(self.rows())).tolist()
        teachers = [{**who, "accuracy": value} for who, value in zip(self.teachers.describe(), accuracies)]
        return {**annotator, "teachers": teachers}

    def rows(self) -> np.ndarray:
        """Index, label, prediction, confidence and loss of each sample, (samples, 5), in the split's order."""
        rows = np.concatenate(self.state["rows"])
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def _told(self, row: np.ndarray) -> dict[str, Any]:
        names, (label, prediction) = self.class_names, row[1:3].astype(int)
        return {"label": names[label], "prediction": names[prediction], "score": float(row[3])}

    def predictions(self) -> Iterator[dict[str, Any]]:
        for row in self.rows():
            index = int(row[0])
            image = self.images[index]
            file = (image["image"] or {}).get("path")
            position = {"train_index": image["train_index"]} if "train_index" in image else {}  # of a fold
            told = {**self._told(row), "loss": float(row[4])}
            yield {"index": index, **position, **({"file": file} if file else {}), **told}

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """Images of the split as PNG, large ones made smaller, with what the model made of them: evenly spaced ones
        that it knew, then mistakes, up to half, the one first that it was surest of."""
        rows, samples = self.rows(), []
        right = rows[:, 1] == rows[:, 2]
        count = min(self.num_samples, len(rows))
        num_wrong = min(max(count // 2, count - int(right.sum())), int((~right).sum()))
        worst = np.flatnonzero(~right)[np.argsort(-rows[~right, 3], kind="stable")][:num_wrong]
        chosen = [*spaced(np.flatnonzero(right), count - num_wrong), *worst]
        for number, row in enumerate(rows[chosen]):
            index = int(row[0])
            picture = decode(self.images[index]["image"], index)
            picture.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
            picture.save(folder / f"sample_{number}.png")
            worst_of = {"is_worst": True} if row[1] != row[2] else {}
            samples.append({"file": f"sample_{number}.png", **self._told(row), **worst_of})
        return samples


def spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows, evenly spaced."""
    return rows[np.linspace(0, max(len(rows) - 1, 0), count).astype(int)] if count else rows[:0]
