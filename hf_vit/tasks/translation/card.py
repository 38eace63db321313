"""What the card of a translation model knows beyond the shared facts."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_vit.cards import figures
from hf_vit.cards.facts import CardFacts, Metric, Snippet
from hf_vit.cards.records import Records
from hf_vit.tasks.translation import figures as text_figures

MAX_ATTENDED = 2  # texts whose attention is shown
_LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "bleu_lowercase": "BLEU, lower case",
    "exact_match": "Exact match",
    "perplexity": "Perplexity",
    "loss": "Loss (nats for each token)",
}
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
class Sample:
    """A text of the evaluated split, its reference and what the model made of it."""

    source: str
    target: str
    prediction: str


@dataclass(frozen=True)
class TranslationFacts(CardFacts):
    """Facts of a translation model. `signatures` are sacreBLEU's, by the metrics' names; `has_target_tokenizer` says
    that its texts are of another tokenizer than those it reads."""

    unit: ClassVar[str] = "sentences"
    figures: ClassVar[dict] = {
        "curves.png": figures.learning_curves,
        "cross_attention.png": text_figures.cross_attention,
    }

    source_lang: str | None
    target_lang: str | None
    left_out: dict[str, int]
    signatures: dict[str, str]
    samples: list[Sample]
    tokens_per_second: float | None
    has_target_tokenizer: bool

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        shared = super().read(records)
        data, result = records.run.get("data", {}), records.run.get("result", {})
        names = [field.name for field in dataclasses.fields(Sample)]
        rows = [row for row in result.get("samples", []) if all(name in row for name in names)]
        mean_tokens = data.get("splits", {}).get("train", {}).get("mean_tokens", [])
        return {
            **shared,
            "metrics": [_labelled(metric) for metric in shared["metrics"]],
            "source_lang": data.get("source_lang"),
            "target_lang": data.get("target_lang"),
            "left_out": {reason: count for reason, count in data.get("left_out", {}).items() if count},
            "signatures": result.get("metrics", {}).get("signatures", {}),
            "samples": [Sample(*(row[name] for name in names)) for row in rows],
            "tokens_per_second": shared["speed"] * sum(mean_tokens) if shared["speed"] and mean_tokens else None,
            "has_target_tokenizer": "target_tokenizer" in records.run.get("model", {}),
        }

    @property
    def headline(self) -> Metric | None:
        """The metric that decided between checkpoints."""
        chosen = next((a.value for a in self.arguments if a.name == "metric_for_best_model"), "bleu")
        return next((metric for metric in self.metrics if metric.name == chosen), None)

    @property
    def architecture(self) -> dict[str, Any]:
        """The design choices that the configuration states, by the label a card gives them."""
        return {label: self.config[name] for name, label in _ARCHITECTURE.items() if self.config.get(name)}

    @property
    def pictures(self) -> list[str]:
        """The texts for which a figure shows what the model attends to."""
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
        if self.has_target_tokenizer:
            values.update(load_target=_LOAD_TARGET.format(**values), target="target_tokenizer")
        return [
            Snippet("With a pipeline", _PIPELINE.format(**values)),
            Snippet("With the Auto classes", _AUTO_CLASSES.format(**values)),
        ]


def _labelled(metric: Metric) -> Metric:
    """A metric's name as the field writes it; of a metric of beam search, with the number of beams."""
    beam, _, name = metric.name.partition("_") if metric.name.startswith("beam") else ("", "", metric.name)
    label = _LABELS.get(name, metric.label) + (f", {beam.removeprefix('beam')} beams" if beam else "")
    kind = "percent" if name == "exact_match" else metric.kind
    return dataclasses.replace(metric, label=label, kind=kind)
