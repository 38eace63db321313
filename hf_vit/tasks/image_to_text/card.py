"""Facts on the card of an image-to-text model beyond the shared ones."""

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Metric, Snippet
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.generated import beams_of, labelled
from hf_vit.cards.records import Records
from hf_vit.tasks.image_to_text import figures
from hf_vit.tasks.image_to_text.record import Data, ImageToTextRecord, Measurement, Metrics, Sample

MAX_ATTENDED = 3  # images whose attention is shown
_ARCHITECTURE = {
    "vision_config": {
        "image_size": "Canvas",
        "patch_size": "Patch",
        "patch_embedding": "Patch embedding",
        "position_embedding": "Encoder positions",
        "hidden_size": "Encoder hidden size",
        "num_hidden_layers": "Encoder layers",
        "num_attention_heads": "Encoder attention heads",
        "intermediate_size": "Encoder MLP size",
    },
    "text_config": {
        "position_embedding": "Decoder positions",
        "d_model": "Decoder hidden size",
        "decoder_layers": "Decoder layers",
        "decoder_attention_heads": "Decoder attention heads",
        "decoder_ffn_dim": "Decoder MLP size",
        "vocab_size": "Vocabulary",
        "dropout": "Decoder dropout",
        "label_smoothing": "Label smoothing",
    },
}
_PIPELINE = """\
from transformers import pipeline

reader = pipeline("image-to-text", model={repo_id}{trust})
print(reader({image})[0]["generated_text"])
"""
_AUTO_CLASSES = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained({repo_id}{trust})
tokenizer = AutoTokenizer.from_pretrained({repo_id}{trust})
model = AutoModelForImageTextToText.from_pretrained({repo_id}{trust})

inputs = processor(Image.open({image}), return_tensors="pt")
output_ids = model.generate(inputs["pixel_values"])
print(tokenizer.decode(output_ids[0], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class ImageToTextFacts(CardFacts):
    """Facts of an image-to-text model; see `record` for those that are of its record."""

    unit: ClassVar[str] = "images"
    curves: ClassVar[list[Curve]] = [
        Curve("BLEU", "BLEU", "bleu"),
        Curve("Exact match", "exact match (%)", "exact_match", 100),
    ]
    figures: ClassVar[dict] = {
        "samples.png": figures.samples,
        "curves.png": learning_curves,
        "cross_attention.png": figures.cross_attention,
    }

    data: Data
    measured: Measurement
    signatures: dict[str, str]
    samples: list[Sample]

    @classmethod
    def read(cls, records: Records[ImageToTextRecord]) -> dict[str, Any]:
        shared, result = super().read(records), records.run.result
        return {
            **shared,
            "metrics": [labelled(metric, Metrics) for metric in shared["metrics"]],
            "signatures": result.metrics.signatures,
            "samples": [
                sample
                for sample in result.samples
                if (records.folder / sample.file).is_file() and ".." not in PurePath(sample.file).parts
            ],
        }

    @property
    def architecture(self) -> dict[str, Any]:
        found = {}
        for part, labels in _ARCHITECTURE.items():
            fields = self.config.get(part) or {}
            found.update({label: fields[name] for name, label in labels.items() if fields.get(name)})
        return found

    @property
    def headline(self) -> Metric | None:
        """The metric that decided between checkpoints."""
        chosen = next((a.value for a in self.arguments if a.name == "metric_for_best_model"), "bleu")
        return next((metric for metric in self.metrics if metric.name == chosen), None)

    @property
    def num_beams(self) -> int:
        """Beams that the saved model was measured with beside greedy decoding, else 1."""
        return beams_of(self.metrics)

    @property
    def example_files(self) -> list[str]:
        return [sample.file for sample in self.samples[:MAX_ATTENDED]]

    @property
    def attended(self) -> list[str]:
        return self.example_files

    @property
    def has_inputs(self) -> bool:
        return bool(self.samples)

    @property
    def examples(self) -> list[Snippet]:
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": ", trust_remote_code=True" if self.has_code else "",
            "image": json.dumps(next(iter(self.example_files), "image.png")),
        }
        return [
            Snippet("With a pipeline", _PIPELINE.format(**values)),
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
        ]
