"""Facts on the card of a translation model beyond the shared ones."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Metric, Snippet
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.generated import beams_of, labelled
from hf_vit.cards.records import Records
from hf_vit.tasks.translation import figures
from hf_vit.tasks.translation.record import Data, Measurement, Metrics, Model, Sample, TranslationRecord

MAX_ATTENDED = 2  # texts whose attention is shown
_ARCHITECTURE = {
    "position_embedding": "Position embedding",
    "norm_position": "Norm position",
    "encoder_layers": "Encoder layers",
    "decoder_layers": "Decoder layers",
    "d_model": "Hidden size",
    "encoder_attention_heads": "Encoder attention heads",
    "decoder_attention_heads": "Decoder attention heads",
    "encoder_ffn_dim": "Encoder MLP size",
    "decoder_ffn_dim": "Decoder MLP size",
    "activation_function": "Activation",
    "encoder_vocab_size": "Source vocabulary",
    "vocab_size": "Target vocabulary",
    "dropout": "Dropout",
    "label_smoothing": "Label smoothing",
}
_AUTO_CLASSES = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({repo_id}{trust})
{load_target}model = AutoModelForSeq2SeqLM.from_pretrained({repo_id}{trust})

inputs = tokenizer({text}, return_tensors="pt")
output_ids = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
print({target}.decode(output_ids[0], skip_special_tokens=True))
"""
_LOAD_TARGET = 'target_tokenizer = AutoTokenizer.from_pretrained({repo_id}, subfolder="target_tokenizer")\n'
_PIPELINE = """\
from transformers import pipeline

translator = pipeline("translation", model={repo_id}{trust})
print(translator({text})[0]["translation_text"])
"""


@dataclass(frozen=True)
class TranslationFacts(CardFacts):
    """Facts of a translation model. `signatures` are sacreBLEU's, by the metrics' names, `left_out` counts training
    pairs by the reason that they were left out for."""

    unit: ClassVar[str] = "sentences"
    curves: ClassVar[list[Curve]] = [
        Curve("BLEU", "BLEU", "bleu"),
        Curve("Exact match", "exact match (%)", "exact_match", 100),
    ]
    architecture_labels: ClassVar[dict[str, str]] = _ARCHITECTURE
    figures: ClassVar[dict] = {"curves.png": learning_curves, "cross_attention.png": figures.cross_attention}

    model: Model
    data: Data
    measured: Measurement
    left_out: dict[str, int]
    signatures: dict[str, str]
    samples: list[Sample]
    tokens_per_second: float | None

    @classmethod
    def read(cls, records: Records[TranslationRecord]) -> dict[str, Any]:
        shared = super().read(records)
        data, result = records.run.data, records.run.result
        mean_tokens = data.splits["train"].mean_tokens if "train" in data.splits else []
        return {
            **shared,
            "metrics": [labelled(metric, Metrics) for metric in shared["metrics"]],
            "left_out": {reason: count for reason, count in data.left_out.items() if count},
            "signatures": result.metrics.signatures,
            "samples": result.samples,
            "tokens_per_second": shared["speed"] * sum(mean_tokens) if shared["speed"] and mean_tokens else None,
        }

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
    def attended(self) -> list[str]:
        return [sample.source for sample in self.samples if sample.source][:MAX_ATTENDED]

    @property
    def examples(self) -> list[Snippet]:
        text = self.samples[0].source if self.samples else "..."
        values = {
            "repo_id": json.dumps(self.repo_id),
            "trust": ", trust_remote_code=True" if self.has_code else "",
            "text": json.dumps(text, ensure_ascii=False),
            "load_target": "",
            "target": "tokenizer",
        }
        if self.model.target_tokenizer is not None:
            values.update(load_target=_LOAD_TARGET.format(**values), target="target_tokenizer")
        return [
            Snippet("With a pipeline", _PIPELINE.format(**values)),
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
        ]
