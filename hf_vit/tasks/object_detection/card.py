"""Facts on the card of a detector beyond the shared ones."""

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Snippet
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.records import Records
from hf_vit.tasks.object_detection import figures
from hf_vit.tasks.object_detection.record import Check, ClassScore, Data, Measurement, Split

_ARCHITECTURE = {
    "d_model": "Hidden size",
    "encoder_layers": "Encoder layers",
    "decoder_layers": "Decoder layers",
    "decoder_attention_heads": "Decoder heads",
    "num_queries": "Queries",
}

_PIPELINE = """\
from transformers import pipeline

detector = pipeline("object-detection", model={repo_id}{trust})
for found in detector({image}, threshold={threshold}):
    print(f"{{found['label']}}: {{found['score']:.2f}} at {{list(found['box'].values())}}")
"""
_AUTO_CLASSES = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

processor = AutoImageProcessor.from_pretrained({repo_id}{trust})
model = AutoModelForObjectDetection.from_pretrained({repo_id}{trust})

image = Image.open({image})
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
found = processor.post_process_object_detection(
    outputs, threshold={threshold}, target_sizes=[(image.height, image.width)]
)[0]
print(f"{{len(found['scores'])}} objects")
"""


@dataclass(frozen=True)
class ObjectDetectionFacts(CardFacts):
    """Facts of a detector; see `record` for those that are of its record."""

    unit: ClassVar[str] = "images"
    curves: ClassVar[list[Curve]] = [Curve("Average precision", "AP (%)", "ap", 100)]
    architecture_labels: ClassVar[dict[str, str]] = _ARCHITECTURE
    figures: ClassVar[dict] = {
        "samples.png": figures.samples,
        "curves.png": learning_curves,
        "precision_recall.png": figures.precision_recall,
    }

    data: Data
    splits: dict[str, Split]
    measured: Measurement
    ap: float | None
    threshold: float | None
    class_names: list[str]
    per_class: list[ClassScore]
    sizes: dict[str, int]
    precision_recall: list[list[float]]
    samples: list[dict]

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        data, result = records.run.data, records.run.result
        metrics = result.metrics
        return {
            **super().read(records),
            "ap": metrics.ap,
            "threshold": metrics.best_threshold,
            "class_names": data.class_names,
            "per_class": metrics.per_class,
            "sizes": metrics.sizes,
            "precision_recall": metrics.precision_recall,
            "samples": [
                sample.to_dict()
                for sample in result.samples
                if (records.folder / sample.file).is_file() and ".." not in PurePath(sample.file).parts
            ],
        }

    @property
    def hub_metrics(self) -> list[str]:
        return []

    @property
    def shown_threshold(self) -> float:
        """The threshold of the snippets: that of best F1, else the pipeline's own."""
        return 0.5 if self.threshold is None else round(self.threshold, 3)

    @property
    def examples(self) -> list[Snippet]:
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": ", trust_remote_code=True" if self.has_code else "",
            "image": json.dumps(next(iter(self.example_files), "image.png")),
            "threshold": self.shown_threshold,
        }
        return [
            Snippet("With a pipeline", _PIPELINE.format(**values)),
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
        ]

    @property
    def example_files(self) -> list[str]:
        return [sample["file"] for sample in self.samples[:1]]

    @property
    def checks(self) -> dict[str, Check]:
        """Splits in whose annotations something was mended or left out."""
        names = ("clamped", "dropped", "duplicates", "crowd", "empty", "size_differs", "exif_turned")
        return {
            split: check for split, check in self.data.checks.items() if any(getattr(check, name) for name in names)
        }
