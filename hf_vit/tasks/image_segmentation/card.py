"""Facts on the card of a segmenter beyond the shared ones."""

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Snippet
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.records import Records
from hf_vit.tasks.image_segmentation import figures
from hf_vit.tasks.image_segmentation.record import PanopticScore
from hf_vit.tasks.object_detection.record import ClassScore, Data, Measurement, Split

_ARCHITECTURE = {
    "d_model": "Hidden size",
    "encoder_layers": "Encoder layers",
    "decoder_layers": "Decoder layers",
    "decoder_attention_heads": "Decoder heads",
    "num_queries": "Queries",
}
_THRESHOLD = 0.5  # at which PQ is measured; the pipeline's own is 0.9

_PIPELINE = """\
from transformers import pipeline

segmenter = pipeline("image-segmentation", model={repo_id}{trust})
for found in segmenter({image}, threshold={threshold}):
    print(f"{{found['label']}}: {{found['score']:.2f}}, mask of {{found['mask'].size}}")
"""
_AUTO_CLASSES = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageSegmentation

processor = AutoImageProcessor.from_pretrained({repo_id}{trust})
model = AutoModelForImageSegmentation.from_pretrained({repo_id}{trust})

image = Image.open({image})
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
found = processor.post_process_panoptic_segmentation(
    outputs, threshold={threshold}, target_sizes=[(image.height, image.width)]
)[0]
print(f"{{len(found['segments_info'])}} segments")
"""


@dataclass(frozen=True)
class ImageSegmentationFacts(CardFacts):
    """Facts of a segmenter; see `record` for those that are of its record."""

    unit: ClassVar[str] = "images"
    curves: ClassVar[list[Curve]] = [Curve("Panoptic quality", "PQ (%)", "pq", 100)]
    architecture_labels: ClassVar[dict[str, str]] = _ARCHITECTURE
    figures: ClassVar[dict] = {"samples.png": figures.samples, "curves.png": learning_curves}

    data: Data
    splits: dict[str, Split]
    measured: Measurement
    pq: float | None
    class_names: list[str]
    panoptic_classes: list[PanopticScore]
    per_class: list[ClassScore]
    samples: list[dict]

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        metrics = records.run.result.metrics
        return {
            **super().read(records),
            "pq": metrics.pq,
            "class_names": records.run.data.class_names,
            "panoptic_classes": metrics.panoptic_classes,
            "per_class": metrics.per_class,
            "samples": [
                files
                for files in (sample.to_dict() for sample in records.run.result.samples)
                if all((records.folder / f).is_file() and ".." not in PurePath(f).parts for f in files.values())
            ],
        }

    @property
    def hub_metrics(self) -> list[str]:
        return []

    @property
    def mask_ap_of(self) -> dict[str, ClassScore]:
        """Average precision of masks by class."""
        return {score.label: score for score in self.per_class}

    @property
    def examples(self) -> list[Snippet]:
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": ", trust_remote_code=True" if self.has_code else "",
            "image": json.dumps(next(iter(self.example_files), "image.png")),
            "threshold": _THRESHOLD,
        }
        return [
            Snippet("With a pipeline", _PIPELINE.format(**values)),
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
        ]

    @property
    def example_files(self) -> list[str]:
        return [sample["file"] for sample in self.samples[:1]]
