"""What the card of an image classifier knows beyond the shared facts."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from hf_vit.cards import figures
from hf_vit.cards.facts import CardFacts, Metric, Snippet, Split, scalar_metrics
from hf_vit.cards.format import local
from hf_vit.cards.records import Records

MAX_TABLE_ROWS = 30  # a longer table of classes is cut to its best and worst ends
TABLE_END_ROWS = 10
_SCORES = ("precision", "recall", "f1", "support")

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
    "drop_path_rate": "Stochastic depth, last layer",
}

_AUTO_CLASSES = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained({repo_id})
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
class ClassScore:
    """How one class fared: fractions in [0, 1]; `support` is its number of examples."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """`count` examples of class `label`, a fraction `share` of that class, were taken for class `prediction`."""

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class Teacher:
    """A model that taught this one; `accuracy` is its own on the split of the result, a fraction in [0, 1]."""

    name: str
    revision: str | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class ImageClassificationFacts(CardFacts):
    """Facts of an image classifier.

    `heads` holds the metrics of each head by its name, from `heads` among the metrics of the result; empty for a model
    with one head. `teachers` come from `teachers` in the records, a list of dicts with `name` and, where known,
    `revision` and `accuracy`, or else from the argument of that name.
    `confusion_matrix[i][j]` examples of class `i` were taken for class `j`. `calibration` holds one dict with
    `confidence`, `accuracy` and `num_examples` for each bin of confidence. `samples` are images of the evaluated
    split, each a dict with `file` (relative to the folder), `label`, `prediction` and `score`.
    """

    unit: ClassVar[str] = "images"
    figures: ClassVar[dict] = {
        "samples.png": figures.samples,
        "curves.png": figures.learning_curves,
        "confusion_matrix.png": figures.confusion_matrix,
        "reliability.png": figures.reliability_diagram,
        "attention.png": figures.attention,
        "positions.png": figures.positions,
    }

    heads: dict[str, list[Metric]]
    teachers: list[Teacher]
    class_names: list[str]
    per_class: list[ClassScore]
    confusion_matrix: list[list[int]]
    calibration: list[dict]
    samples: list[dict]
    preprocessing: dict

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        result = records.run.get("result", {})
        metrics = result.get("metrics", {})
        names = records.run.get("data", {}).get("class_names") or records.config.get("id2label", {}).values()
        confusion_matrix = metrics.get("confusion_matrix", [])
        taught_by = records.run.get("arguments", {}).get("teacher") or []
        teachers = records.run.get("teachers") or [{"name": name} for name in taught_by]
        rows = [row for row in metrics.get("per_class", []) if all(key in row for key in ("label", *_SCORES))]
        return {
            **super().read(records),
            "heads": {name: scalar_metrics(values) for name, values in metrics.get("heads", {}).items()},
            "teachers": [
                Teacher(local(teacher["name"]), teacher.get("revision"), teacher.get("accuracy"))
                for teacher in teachers
            ],
            "class_names": [str(name) for name in names],
            "per_class": [ClassScore(str(row["label"]), *(row[key] for key in _SCORES)) for row in rows],
            "confusion_matrix": confusion_matrix if len(confusion_matrix) == len(names) else [],
            "calibration": metrics.get("calibration", []),
            "samples": [sample for sample in result.get("samples", []) if _is_sample(sample, records.folder)],
            "preprocessing": records.preprocessor,
        }

    @property
    def examples(self) -> list[Snippet]:
        image = next(iter(self.example_files), "image.png")
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": ", trust_remote_code=True" if self.has_code else "",
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
    def pictures(self) -> list[str]:
        return [sample["file"] for sample in self.samples[: figures.MAX_PICTURES]]

    @property
    def architecture(self) -> dict[str, Any]:
        """The design choices that the configuration states, by the label a card gives them."""
        return {label: self.config[name] for name, label in _ARCHITECTURE.items() if self.config.get(name)}

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
        """The rows to show: all of them in their order, or the ends of a long table from the best F1 to the worst."""
        if len(self.tested) <= MAX_TABLE_ROWS:
            return self.tested
        ranked = sorted(self.tested, key=lambda row: -row.f1)
        return ranked[:TABLE_END_ROWS] + ranked[-TABLE_END_ROWS:]

    @property
    def counted_splits(self) -> list[Split]:
        """The splits whose classes were counted; none when the table of classes would be long."""
        if len(self.class_names) > MAX_TABLE_ROWS:
            return []
        return [split for split in self.splits if 0 < len(split.class_counts) == len(self.class_names)]

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
        counts = next((split.class_counts for split in self.splits if split.name == "train"), None)
        return (min(counts), max(counts)) if counts else None


def _is_sample(sample: dict, folder: Path) -> bool:
    """Whether everything about a sample is recorded and its image is in the folder itself, not above it."""
    whole = all(key in sample for key in ("file", "label", "prediction", "score"))
    return whole and (folder / sample["file"]).is_file() and ".." not in PurePath(sample["file"]).parts
