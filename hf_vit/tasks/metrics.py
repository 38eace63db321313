"""Metrics that count batch by batch, and the same as `evaluate` modules that need no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import evaluate

INTEGER, NUMBER, TEXT = datasets.Value("int64"), datasets.Value("float32"), datasets.Value("string")


class Counter(ABC):
    """A metric as sums over samples.

    What is counted stands in `state`: numbers, arrays and lists by name, which of several processes are added up.
    """

    state: dict[str, Any]

    @abstractmethod
    def update(self, *columns: Any, **named_columns: Any) -> None:
        """Count the samples of a batch, given as equally long columns."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The metric of all samples so far."""


class Metric(evaluate.Metric):
    """A metric of this package, without files and locks.

    `inputs` are the columns that `counter` counts, by name; other keywords of `compute` make the counter.
    """

    description: ClassVar[str]
    counter: ClassVar[type[Counter]]
    inputs: ClassVar[Mapping[str, Any]] = {"predictions": INTEGER, "references": INTEGER}

    def __init__(self, **kwargs: Any):
        # No file and no lock for predictions that fit in memory.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        numbers = all(feature in (INTEGER, NUMBER) for feature in self.inputs.values())
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=str(dict(self.inputs)),
            features=datasets.Features(self.inputs),
            format="numpy" if numbers else None,
        )

    def _compute(self, **given: Any) -> dict[str, Any]:
        columns = {name: given.pop(name) for name in self.inputs}
        counter = self.counter(**given)
        counter.update(**columns)
        return counter.compute()
