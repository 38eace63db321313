# ruff: noqa: RUF012 - pydantic copies a default for each object
"""Schema of what the record of an image classifier's run holds beyond the shared schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict

from hf_vit import record
from hf_vit.record import HOLDS_PATHS, Part, metric


class Split(record.Split):
    """`class_counts[i]` examples bear label `i`; of a stream `num_shards` files are read."""

    class_counts: list[int] = []
    num_shards: int | None = None


class Data(record.Data):
    """`bad_samples` counts the images left out of each of the source's splits because they cannot be decoded, and
    `unused_files`, by the reason, the files of its folders that are not used. `has_deep_samples` says that there are
    images with samples of more than 8 bits."""

    bad_samples: dict[str, int] = {}
    unused_files: dict[str, dict[str, int]] = {}
    has_deep_samples: bool | None = None
    image_column: str | None = None
    label_column: str | None = None
    class_names: list[str] = []
    splits: dict[str, Split] = {}


class ClassScore(Part):
    """How one class fared: fractions in [0, 1]; `support` is its number of examples, of a label
    among several the images that have it, `threshold` the probability from which on it was given."""

    label: str
    average_precision: float | None = None
    threshold: float | None = None
    precision: float
    recall: float
    f1: float
    support: int


class CalibrationBin(Part):
    """The examples whose confidence falls into one bin: its mean, unless the model gave no numbers, their accuracy and
    how many they are."""

    confidence: float | None = None
    accuracy: float
    num_examples: int


class Metrics(record.Metrics):
    """`confusion_matrix[i][j]` examples of class `i` were taken for class `j`; `heads` holds the metrics of each head
    by its name, of a model that has several."""

    model_config = ConfigDict(extra="forbid")

    accuracy: float | None = metric("Accuracy", "percent")
    balanced_accuracy: float | None = metric("Balanced accuracy", "percent")
    top5_accuracy: float | None = metric("Top-5 accuracy", "percent")
    expected_calibration_error: float | None = metric("Expected calibration error", "percent")
    calibration: list[CalibrationBin] = []
    mean_average_precision: float | None = metric("Mean average precision", "percent")
    f1_micro: float | None = metric("F1 micro", "percent")
    f1_macro: float | None = metric("F1 macro", "percent")
    per_class: list[ClassScore] = []
    confusion_matrix: list[list[int]] = []
    heads: dict[str, Metrics] = {}


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Sample(Part):
    """An image of the evaluated split, `file` relative to the folder, and the class that it was taken for; `is_worst`
    marks the mistakes that the model was surest of."""

    file: str
    label: str
    prediction: str
    score: float | None = None  # of a model that gave no number
    is_worst: bool = False


class Result(record.Result):
    metrics: Metrics = Metrics()
    samples: list[Sample] = []


class Teacher(Part):
    """A model that taught this one; `accuracy` is its own on the split of the result, a fraction in [0, 1]."""

    name: str
    revision: str | None = None
    accuracy: float | None = None


class Attention(Part):
    """Attention maps (rows, columns) of an image by their titles; 1 is an even share of the patches."""

    file: str
    maps: dict[str, list[list[float]]]


class Positions(Part):
    """Relations between position embeddings: `maps` (count, height, width), and of similarities the `rows` and
    `columns` of the patches that they are to."""

    kind: str
    grid_size: list[int]
    rows: list[int] = []
    columns: list[int] = []
    maps: list[list[list[float]]]


class Measurement(record.Measurement):
    """`input_shape` is (channels, height, width), `flops` those of one forward pass on one image, a multiplication
    and an addition counting as two."""

    input_shape: list[int] = []
    flops: int | None = None
    num_patches: int | None = None
    num_prefix_tokens: int | None = None
    positions: Positions | None = None
    attention: list[Attention] = []


class ImageClassificationRecord(record.Record):
    data: Data = Data()
    epochs: list[Epoch] = []
    result: Result = Result()
    teachers: Annotated[list[Teacher], HOLDS_PATHS] = []
    annotator: Annotated[Teacher | None, HOLDS_PATHS] = None  # of the patches
    card: Measurement = Measurement()
