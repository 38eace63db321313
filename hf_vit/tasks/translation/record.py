# ruff: noqa: RUF012 - pydantic copies a default for each object
"""Schema of what the record of a translation model's run holds beyond the shared schema."""

from __future__ import annotations

from hf_vit import record
from hf_vit.record import Part, metric


class Tokenizer(Part):
    size: int | None = None
    fingerprint: str | None = None


class Model(record.Model):
    """`target_tokenizer` is there when the texts that it writes are of another tokenizer than those it reads."""

    tokenizer: Tokenizer | None = None
    target_tokenizer: Tokenizer | None = None


class Split(record.Split):
    """`mean_tokens` of a source and of a target."""

    mean_tokens: list[float] = []


class Data(record.Data):
    """`left_out` counts training pairs by the reason that they were left out for."""

    source_lang: str | None = None
    target_lang: str | None = None
    splits: dict[str, Split] = {}
    left_out: dict[str, int] = {}


class Metrics(record.Metrics):
    """Of greedy decoding; those of a search with N beams are named `beamN_...`. `signatures` are sacreBLEU's, by the
    metrics' names."""

    loss: float | None = metric("Loss (nats for each token)")
    perplexity: float | None = metric("Perplexity")
    bleu: float | None = metric("BLEU")
    chrf: float | None = metric("chrF")
    exact_match: float | None = metric("Exact match", "percent")
    bleu_lowercase: float | None = metric("BLEU, lower case")
    signatures: dict[str, str] = {}


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Sample(Part):
    """A text of the evaluated split, its reference and what the model made of it, by a search with `num_beams` where
    that is recorded, else greedily."""

    source: str
    target: str
    prediction: str
    num_beams: int = 1


class Result(record.Result):
    metrics: Metrics = Metrics()
    samples: list[Sample] = []


class CrossAttention(Part):
    """How much of its attention each token of a translation (row) gives to each token of its source (column)."""

    source: list[str]
    target: list[str]
    map: list[list[float]]


class Measurement(record.Measurement):
    cross_attention: list[CrossAttention] = []


class TranslationRecord(record.Record):
    model: Model = Model()
    data: Data = Data()
    epochs: list[Epoch] = []
    result: Result = Result()
    card: Measurement = Measurement()
