# ruff: noqa: RUF012 - pydantic copies a default for each object
"""Schema of what the record of a detector's run holds beyond the shared schema."""

from __future__ import annotations

from pydantic import ConfigDict

from hf_vit import record
from hf_vit.record import Part, metric


class Split(record.Split):
    """`class_counts[i]` objects are of class `i`."""

    class_counts: list[int] = []


class Check(Part):
    """Findings in the annotations of a split before training; see `vision.annotations.checks.SplitReport`."""

    images: int
    objects: int
    clamped: int = 0
    dropped: int = 0
    duplicates: int = 0
    crowd: int = 0
    empty: int = 0
    size_differs: int = 0
    exif_turned: int = 0
    small: int = 0
    max_objects: int = 0
    class_counts: list[int] = []


class Data(record.Data):
    """`category_ids` are the source's own numbers of the classes, `stuff` those classes that cannot be counted."""

    format: str | None = None
    class_names: list[str] = []
    category_ids: list[int] = []
    stuff: list[str] = []
    checks: dict[str, Check] = {}
    splits: dict[str, Split] = {}


class ClassScore(Part):
    """How one class fared: fractions in [0, 1], None where the split has no object of it; `support` objects."""

    label: str
    ap: float | None = None
    ap50: float | None = None
    support: int


class Metrics(record.Metrics):
    """COCO's metrics of boxes; `precision_recall[i]` is the precision of class `i` at 101 recalls, at IoU 0.5."""

    model_config = ConfigDict(extra="forbid")

    ap: float | None = metric("AP (IoU 0.50 to 0.95)", "percent")
    ap50: float | None = metric("AP50", "percent")
    ap75: float | None = metric("AP75", "percent")
    ap_small: float | None = metric("AP, objects below 32 × 32 pixels", "percent")
    ap_medium: float | None = metric("AP, up to 96 × 96 pixels", "percent")
    ap_large: float | None = metric("AP, larger objects", "percent")
    ar1: float | None = metric("AR, 1 detection an image", "percent")
    ar10: float | None = metric("AR, 10 detections", "percent")
    ar100: float | None = metric("AR, 100 detections", "percent")
    best_f1: float | None = metric("F1 at the best threshold", "percent")
    best_threshold: float | None = metric("Best threshold of scores")
    per_class: list[ClassScore] = []
    sizes: dict[str, int] = {}
    precision_recall: list[list[float]] = []


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Object(Part):
    """An object of an image, or what was taken for one: `box` (left, top, right, bottom) in the image's pixels,
    `outcome` right, wrong or, of an object that was not found, missed."""

    label: str
    box: list[float]
    outcome: str
    score: float | None = None


class Sample(Part):
    """An image of the evaluated split, `file` relative to the folder."""

    file: str
    objects: list[Object] = []


class Result(record.Result):
    metrics: Metrics = Metrics()
    samples: list[Sample] = []


class Measurement(record.Measurement):
    """`input_shape` is (channels, height, width), `flops` those of one forward pass on one image, a multiplication
    and an addition counting as two."""

    input_shape: list[int] = []
    flops: int | None = None


class ObjectDetectionRecord(record.Record):
    data: Data = Data()
    epochs: list[Epoch] = []
    result: Result = Result()
    card: Measurement = Measurement()
