"""What the record of such a run holds beyond the shared schema: how its metrics are called and written."""

from hf_vit import record
from hf_vit.record import metric


class Metrics(record.Metrics):
    mean_error: float | None = metric("Mean error (degrees)")
    near: float | None = metric("Within 10 degrees", "percent")


class Epoch(record.Epoch):
    metrics: Metrics = Metrics()


class Result(record.Result):
    metrics: Metrics = Metrics()


class RotationRecord(record.Record):
    epochs: list[Epoch] = []  # noqa: RUF012 - pydantic copies a default for each object
    result: Result = Result()
