# ruff: noqa: RUF012 - pydantic copies a default for each object
"""Schema of what the record of an image-to-text model's run holds beyond the shared schema."""

from __future__ import annotations

from hf_vit import record
from hf_vit.record import Part, metric


class Tokenizer(Part):
    size: int | None = None
    fingerprint: str | None = None


class Model(record.Model):
    tokenizer: Tokenizer | None = None


class Split(record.Split):
    """`num_texts` of all images, and their `mean_tokens`."""

    num_texts: int | None = None
    mean_tokens: float | None = None


class Data(record.Data):
    """`left_out` counts images of each split by the reason that they were left out for, `empty_texts` the empty texts
    beside others of one image."""

    splits: dict[str, Split] = {}
    left_out: dict[str, dict[str, int]] = {}
    empty_texts: dict[str, int] = {}


class Metrics(record.Metrics):
    """Of greedy decoding; those of a search with N beams are named `beamN_...`. `signatures` are sacreBLEU's, by the
    metrics' names."""

    loss: float | None = metric("Loss (nats for each token)")
    perplexity: float | None = metric("Perplexity")
    exact_match: float | None = metric("Exact match", "percent")
    bleu: float | None = metric("BLEU")
    chrf: float | None = metric("chrF")
    bleu_lowercase: float | None = metric("BLEU, lower case")
    signatures: dict[str, str] = {}


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Sample(Part):
    """An image of the evaluated split, its texts and what the model wrote."""

    file: str
    texts: list[str]
    prediction: str


class Result(record.Result):
    metrics: Metrics = Metrics()
    samples: list[Sample] = []


class CrossAttention(Part):
    """How much of its attention each word of a text gives to each patch of the image: (words, rows, columns)."""

    file: str
    words: list[str]
    maps: list[list[list[float]]]


class Measurement(record.Measurement):
    cross_attention: list[CrossAttention] = []


class ImageToTextRecord(record.Record):
    model: Model = Model()
    data: Data = Data()
    epochs: list[Epoch] = []
    result: Result = Result()
    card: Measurement = Measurement()
