"""The record of a run, run.json: one schema for those who write it and those who read it.

A task that has something of its own to tell derives its parts from those here, in its `record.py`. A name that no
schema knows is an error in a writer as in a reader, and what is null or not a finite number was not measured: the file
leaves it out, and a reader finds None. `arguments`, `config` and `versions` are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from hf_vit import tasks
from hf_vit.files import read_object

RUN_FILE = "run.json"
PREDICTIONS_FILE = "predictions.jsonl"  # beside it: the answer to each sample; never published, it may name files
SCHEMA_VERSION = 1  # records without a version are those of 0.1.0, which this one reads too
HOLDS_PATHS = "holds paths"  # marks what may name folders of the computer that trained


class Part(BaseModel):
    """A part of the record, and the base of all of them."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_unmeasured(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not _is_unmeasured(value)}

    def to_dict(self) -> dict[str, Any]:
        """Values that were set, under the names of the file."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def with_paths(self, change: Callable[[Any], Any]) -> dict[str, Any]:
        """As `to_dict`, with `change` applied to the fields that may name folders of the computer that trained."""
        content = self.to_dict()
        for name, field in type(self).model_fields.items():
            key, value = field.alias or name, getattr(self, name)
            if key in content and HOLDS_PATHS in field.metadata:
                content[key] = change(content[key])
            elif key in content and isinstance(value, Part):
                content[key] = value.with_paths(change)
        return content


class Hardware(Part):
    device: str | None = None
    device_name: str | None = None
    num_processes: int | None = None
    cpu_threads: int | None = None  # of each process
    mixed_precision: str | None = None


class Model(Part):
    class_name: str | None = Field(None, alias="class")
    num_parameters: int | None = None
    num_trainable_parameters: int | None = None
    config: dict[str, Any] = {}  # what differs from the defaults
    base_model_revision: str | None = None


class Split(Part):
    num_examples: int | None = None
    fingerprint: str | None = None


class Data(Part):
    name: Annotated[str | None, HOLDS_PATHS] = None
    revision: str | None = None
    license: str | None = None
    splits: Mapping[str, Split] = {}


class Metrics(Part):
    """The metrics of one evaluation, numbers by name. A task that has others than numbers declares them, and gives
    those that it knows a `label` and, where they are fractions in [0, 1], the `kind` "percent", with `metric`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    loss: float | None = Field(None, title="Loss (nats)")

    def number(self, name: str) -> float | None:
        """The metric of that name, None if it was not measured.

        Raises:
            AttributeError: the schema declares all metrics there are, and not this one.
        """
        if name not in type(self).model_fields and self.model_extra is not None:
            return self.model_extra.get(name)
        return getattr(self, name)


def metric(label: str, kind: str = "number") -> Any:
    """A declared metric, which is a number, and how a card writes it; see `Metrics`."""
    return Field(None, title=label, json_schema_extra={"kind": kind})


class Epoch(Part):
    """One evaluation, after an epoch or, where `epoch` has a fraction, within one; `step` is the optimizer step before
    it, `metrics` are of the split that the run follows, `train_loss` is the mean over the epoch so far, and
    `train_terms` those of the terms of the loss by name, of a task that has several; `mfu` is the share of a large
    matmul's FLOPs a second that the steps reached."""

    epoch: int | float | None = None
    step: int | None = None
    learning_rate: float | None = None
    train_loss: float | None = None
    train_terms: dict[str, float] = {}
    metrics: Metrics = Metrics()
    duration_s: float | None = None
    samples_per_second: float | None = None
    data_wait_fraction: float | None = None
    mfu: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_any_unit(cls, values: Any) -> Any:
        """Takes `images_per_second` and the like, as runs of 0.1.0 and the state of a run say."""
        if not isinstance(values, dict):
            return values
        return {
            "samples_per_second" if name.endswith("_per_second") else name: value for name, value in values.items()
        }


class Result(Part):
    """The last evaluation; a task says what a sample is. `kept_epoch` is the one whose weights these are, where the
    best of them was taken."""

    kept_epoch: int | float | None = None

    split: str | None = None
    num_examples: int | None = None
    metrics: Metrics = Metrics()
    samples: Sequence[dict[str, Any] | Part] = []


class ScheduleChange(Part):
    """An argument of the schedule that a run went on with another value of, after `step` steps."""

    step: int
    name: str
    before: str
    after: str


class Durations(Part):
    training: float | None = None
    total: float | None = None


class Cost(Part):
    energy_kwh: float | None = None
    co2_kg: float | None = None  # kg of CO2 equivalents


class Measurement(Part):
    """Measurements made when the model was run for its card; a task adds what it measures itself.

    `files_sha256` is the digest of the files that decide what the model answers, `tested_transformers` the first and
    last version that the folder's code was tested with, `outputs` what each snippet of the card printed, by its code.
    """

    files_sha256: str | None = None
    tested_transformers: list[str] = []
    outputs: dict[str, str] = {}


class Record(Part):
    """A run. Times are in seconds; `non_default_arguments` are those that the recipe or the command line set."""

    schema_version: int = 0
    task: str
    status: str = "finished"  # or running, interrupted
    error: str | None = None
    command: Annotated[str | None, HOLDS_PATHS] = None
    recipe: Annotated[str | None, HOLDS_PATHS] = None
    arguments: Annotated[dict[str, Any], HOLDS_PATHS] = {}
    non_default_arguments: list[str] = []
    seed: int | None = None
    versions: dict[str, str | None] = {}
    git_commit: str | None = None
    hardware: Hardware = Hardware()
    model: Model = Model()
    data: Data = Data()
    baselines: dict[str, float] = {}  # accuracies on the split of the result, before training
    epochs: Sequence[Epoch] = []
    schedule_changes: list[ScheduleChange] = []
    peak_memory_bytes: int | None = None
    result: Result = Result()
    duration_s: Durations = Durations()
    cost: Cost = Cost()
    card: Measurement = Measurement()


def record_from(content: dict[str, Any]) -> Record:
    """The record of the class that its task has, from the content of a run.json.

    Raises:
        ValueError: it names no task, is of a later version of the schema, or holds what the schema does not know.
    """
    name, version = content.get("task"), content.get("schema_version", 0)
    if not isinstance(name, str):
        raise ValueError("it does not name its task")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(f"schema_version {version!r} is later than {SCHEMA_VERSION}: a later hf_vit wrote it")
    has_own = name in tasks.names() and (tasks.folder_of(name) / "record.py").is_file()
    record_class = tasks.class_of(name, "record", Record) if has_own else Record
    try:
        return record_class.model_validate(content)
    except ValidationError as error:
        raise ValueError("; ".join(map(_fault, error.errors()))) from None


def _fault(error: ErrorDetails) -> str:
    message = "the schema has no such field" if error["type"] == "extra_forbidden" else error["msg"]
    return f"{'.'.join(map(str, error['loc']))}: {message[:1].lower()}{message[1:]}"


def read_run(folder: Path) -> dict[str, Any]:
    """The content of `folder`'s run.json.

    Raises:
        ValueError: there is none, or it is not a JSON object.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise ValueError(f"folder: {folder} holds no {RUN_FILE}; it is written by a run")
    return read_object(path)


def read_record(folder: Path) -> Record:
    """The record of the run in `folder`.

    Raises:
        ValueError: there is none, or it is not what a run writes.
    """
    content = read_run(folder)
    try:
        return record_from(content)
    except ValueError as error:
        raise ValueError(f"folder: {folder / RUN_FILE} is not what a run writes: {error}") from None


def _is_unmeasured(value: Any) -> bool:
    return value is None or value == {} or (isinstance(value, float) and not math.isfinite(value))
