"""Facts on the card of an image classifier beyond the shared ones."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Metric, Snippet, metrics_of
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.format import local
from hf_vit.cards.records import Records
from hf_vit.files import read_object
from hf_vit.tasks.image_classification import figures
from hf_vit.tasks.image_classification.record import (
    ClassScore,
    Data,
    ImageClassificationRecord,
    Measurement,
    Sample,
    Split,
    Teacher,
)

MAX_TABLE_ROWS = 30  # a longer table of classes is cut to its best and worst rows
TABLE_END_ROWS = 10

_ARCHITECTURE = {
    "patch_size": "Patch size",
    "patch_embedding": "Patch embedding",
    "num_stem_blocks": "Residual blocks after each convolution",
    "position_embedding": "Position embedding",
    "num_register_tokens": "Register tokens",
    "use_distillation_token": "Distillation token",
    "pooling": "Pooling",
    "num_hidden_layers": "Layers",
    "hidden_size": "Hidden size",
    "num_attention_heads": "Attention heads",
    "intermediate_size": "MLP size",
    "hidden_act": "Activation",
    "qk_norm": "Normalised queries and keys",
    "layer_scale_init_value": "LayerScale, initial value",
    "residual_scale": "Residual branches times",
    "drop_path_rate": "Stochastic depth, last layer",
    "use_token_labeling_head": "Head for labels of patches",
}

_AUTO_CLASSES = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained({repo_id}{processor_trust})
model = AutoModelForImageClassification.from_pretrained({repo_id}{trust})

inputs = processor(Image.open({image}), return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(-1)[0]
for score, index in zip(*probabilities.topk({top_k})):
    print(f"{{model.config.id2label[index.item()]}}: {{score:.4f}}")
"""
_PIPELINE = """\
from transformers import pipeline

classifier = pipeline("image-classification", model={repo_id}{trust})
for answer in classifier({image}, top_k={top_k}):
    print(f"{{answer['label']}}: {{answer['score']:.4f}}")
"""


@dataclass(frozen=True)
class Confusion:
    """`count` examples of class `label`, a fraction `share` of that class, were taken for class `prediction`."""

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class ImageClassificationFacts(CardFacts):
    """Facts of an image classifier; see `record` for those that are of its record.

    `heads` holds the metrics of each head by its name; empty for a model with one head. `teachers` come from the
    record, or else from the argument of that name. `calibration` and `samples` are as JSON has them.
    """

    unit: ClassVar[str] = "images"
    curves: ClassVar[list[Curve]] = [Curve("Accuracy", "accuracy (%)", "accuracy", 100)]
    architecture_labels: ClassVar[dict[str, str]] = _ARCHITECTURE
    figures: ClassVar[dict] = {
        "samples.png": figures.samples,
        "curves.png": learning_curves,
        "confusion_matrix.png": figures.confusion_matrix,
        "reliability.png": figures.reliability_diagram,
        "attention.png": figures.attention,
        "positions.png": figures.positions,
    }

    data: Data
    splits: dict[str, Split]
    measured: Measurement
    accuracy: float | None
    mean_average_precision: float | None
    heads: dict[str, list[Metric]]
    teachers: list[Teacher]
    annotator: Teacher | None
    token_label_column: str | None
    token_labeling_weight: float
    lora_r: int | None
    class_names: list[str]
    per_class: list[ClassScore]
    confusion_matrix: list[list[int]]
    calibration: list[dict]
    samples: list[dict]
    has_processor_code: bool

    @classmethod
    def read(cls, records: Records[ImageClassificationRecord]) -> dict[str, Any]:
        shared = super().read(records)
        data, result = records.run.data, records.run.result
        metrics = result.metrics
        names = data.class_names or [str(name) for name in records.config.get("id2label", {}).values()]
        teachers = records.run.teachers or [Teacher(name=name) for name in records.arguments.get("teacher") or []]
        annotator, annotator_name = records.run.annotator, records.arguments.get("token_label_annotator")
        if annotator is None and annotator_name:
            annotator = Teacher(name=annotator_name)
        return {
            **shared,
            "metrics": _fractions_first(shared["metrics"]),
            "accuracy": metrics.accuracy,
            "mean_average_precision": metrics.mean_average_precision,
            "heads": {name: _fractions_first(metrics_of(of_head)) for name, of_head in metrics.heads.items()},
            "teachers": [teacher.model_copy(update={"name": local(teacher.name)}) for teacher in teachers],
            "annotator": annotator and annotator.model_copy(update={"name": local(annotator.name)}),
            "token_label_column": records.arguments.get("token_label_column_name"),
            "lora_r": records.arguments.get("lora_r"),
            "token_labeling_weight": records.arguments.get("token_labeling_weight", 0.0),
            "class_names": names,
            "per_class": metrics.per_class,
            "confusion_matrix": metrics.confusion_matrix if len(metrics.confusion_matrix) == len(names) else [],
            "calibration": [bin.to_dict() for bin in metrics.calibration],
            "has_processor_code": "auto_map" in _processor_config(records.folder),
            "samples": [sample.to_dict() for sample in result.samples if _is_there(sample, records.folder)],
        }

    @property
    def has_worst_mistakes(self) -> bool:
        """Whether the mistakes among the samples are those that the model was surest of."""
        return any(sample.get("is_worst") for sample in self.samples)

    @property
    def hub_metrics(self) -> list[str]:
        return [] if self.accuracy is None else ["accuracy"]

    @property
    def examples(self) -> list[Snippet]:
        image = next(iter(self.example_files), "image.png")
        trust = ", trust_remote_code=True"
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": trust if self.has_code else "",
            "processor_trust": trust if self.has_processor_code else "",
            "image": json.dumps(image),
            "top_k": min(3, len(self.class_names) or 3),
        }
        return [
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
            Snippet("With a pipeline", _PIPELINE.format(**values)),
        ]

    @property
    def example_files(self) -> list[str]:
        return [sample["file"] for sample in self.samples[:1]]

    @property
    def has_inputs(self) -> bool:
        return bool(self.example_files)

    @property
    def attended(self) -> list[str]:
        return [sample["file"] for sample in self.samples[: figures.MAX_PICTURES]]

    @property
    def head_table(self) -> dict[str, list[Metric]]:
        """The metrics that every head and their mean have, in the same order, by the name of the row."""
        rows = {**self.heads, "mean of both": self.metrics}
        common = set.intersection(*({metric.name for metric in row} for row in rows.values()))
        if len(self.heads) < 2 or not common:
            return {}
        return {name: [metric for metric in row if metric.name in common] for name, row in rows.items()}

    @property
    def poolings(self) -> list[str]:
        """The poolings that the configuration names; of none, the class token is read."""
        pooling = self.config.get("pooling", "cls")
        return [pooling] if isinstance(pooling, str) else pooling

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % confidence interval of the accuracy, from the number of evaluated examples alone."""
        if self.accuracy is None or not self.num_examples:
            return None
        return figures.wilson_interval(self.accuracy, self.num_examples)

    @property
    def tested(self) -> list[ClassScore]:
        """How those classes fared of which there were any examples."""
        return [row for row in self.per_class if row.support]

    @property
    def class_table(self) -> list[ClassScore]:
        """The rows to show: all of them in their order, or of a long table the first and last from the best F1 to the
        worst."""
        if len(self.tested) <= MAX_TABLE_ROWS:
            return self.tested
        ranked = sorted(self.tested, key=lambda row: -row.f1)
        return ranked[:TABLE_END_ROWS] + ranked[-TABLE_END_ROWS:]

    @property
    def counted_splits(self) -> dict[str, Split]:
        """The splits whose classes were counted; none when the table of classes would be long."""
        if len(self.class_names) > MAX_TABLE_ROWS:
            return {}
        counted = {name: split for name, split in self.splits.items() if split.class_counts}
        return {name: split for name, split in counted.items() if len(split.class_counts) == len(self.class_names)}

    @property
    def confusions(self) -> list[Confusion]:
        """The pairs of classes most often confused, largest count first, at most `TABLE_END_ROWS`.

        Empty when the figure of the confusion matrix has the counts written in its cells.
        """
        if len(self.confusion_matrix) <= figures.MAX_WRITTEN_CLASSES:
            return []
        found = [
            Confusion(self.class_names[i], self.class_names[j], count, count / sum(row))
            for i, row in enumerate(self.confusion_matrix)
            for j, count in enumerate(row)
            if i != j and count
        ]
        return sorted(found, key=lambda confusion: (-confusion.count, -confusion.share))[:TABLE_END_ROWS]

    @property
    def hardest_class(self) -> ClassScore | None:
        """The class with the lowest recall, when classes differ in it."""
        if len({row.recall for row in self.tested}) < 2:
            return None
        return min(self.tested, key=lambda row: row.recall)

    @property
    def train_class_range(self) -> tuple[int, int] | None:
        """Sizes of the smallest and the largest class in the train split."""
        train = self.splits.get("train")
        return (min(train.class_counts), max(train.class_counts)) if train and train.class_counts else None


def _fractions_first(metrics: list[Metric]) -> list[Metric]:
    return sorted(metrics, key=lambda metric: metric.kind != "percent")


def _processor_config(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_object(path) if path.is_file() else {}


def _is_there(sample: Sample, folder: Path) -> bool:
    """Whether the sample's image is in the folder itself, not above it."""
    return (folder / sample.file).is_file() and ".." not in PurePath(sample.file).parts
