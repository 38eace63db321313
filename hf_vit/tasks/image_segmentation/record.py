# ruff: noqa: RUF012 - pydantic copies a default for each object
"""Schema of what the record of a segmenter's run holds beyond that of a detector's."""

from __future__ import annotations

from hf_vit import record
from hf_vit.record import Part, metric
from hf_vit.tasks.object_detection import record as detection


class PanopticScore(Part):
    """How one class fared: fractions in [0, 1], None where neither image nor model has a segment of it; `support`
    segments."""

    label: str
    pq: float | None = None
    sq: float | None = None
    rq: float | None = None
    support: int


class Metrics(detection.Metrics):
    """Panoptic quality, and COCO's metrics of the masks of things."""

    pq: float | None = metric("PQ", "percent")
    sq: float | None = metric("SQ, how well found segments fit", "percent")
    rq: float | None = metric("RQ, F1 of segments", "percent")
    pq_things: float | None = metric("PQ of things", "percent")
    sq_things: float | None = metric("SQ of things", "percent")
    rq_things: float | None = metric("RQ of things", "percent")
    pq_stuff: float | None = metric("PQ of stuff", "percent")
    sq_stuff: float | None = metric("SQ of stuff", "percent")
    rq_stuff: float | None = metric("RQ of stuff", "percent")
    panoptic_classes: list[PanopticScore] = []


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Sample(Part):
    """An image of the evaluated split beside maps of the class of each pixel as `evaluation.class_map` makes them,
    relative to the folder."""

    file: str
    found: str
    annotated: str


class Result(record.Result):
    metrics: Metrics = Metrics()
    samples: list[Sample] = []


class ImageSegmentationRecord(record.Record):
    data: detection.Data = detection.Data()
    epochs: list[Epoch] = []
    result: Result = Result()
    card: detection.Measurement = detection.Measurement()
