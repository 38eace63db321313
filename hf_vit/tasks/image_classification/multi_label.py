"""Several labels an image: read from lists, joined texts or multi-hot columns, and learnt as yes-or-no questions.

Targets are 1 (yes), 0 (no) or -1 (not known: it counts neither in the loss nor in the metrics).

Shapes: B batch, N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, LargeList, List
from torch.nn import functional as F

from hf_vit.tasks.image_classification.losses import MULTI_LABEL, LossArguments

SEPARATOR = "|"
_AS_WRITTEN = {"1": 1, "0": 0, "-1": -1, "": None}  # in a table with empty cells
UNKNOWN = -1
_NEGATIVE_GAMMA, _MARGIN = 4.0, 0.05  # of the asymmetric loss: the paper's


class LabelColumns:
    """Where a data set holds the labels of its images, and which they are.

    Args:
        reference: the split that decides.
        wanted: the column that is named, if any.
        given_names: the classes that are named, if any: the columns of that name, or what the entries of lists of
            yes and no mean.

    Raises:
        ValueError: no column holds several labels an image, or nothing names their classes.
    """

    def __init__(self, reference: Dataset, wanted: str | None, given_names: Sequence[str] | None):
        self.given_names = None if given_names is None else list(given_names)
        columns = reference.column_names
        self.columns = [name for name in self.given_names or [] if name in columns]
        if self.given_names is None or self.columns != self.given_names:
            self.columns = [self._column(reference, wanted)]
        self.feature = reference.features[self.columns[0]]
        self.class_names = self.given_names or self._names(reference)

    @property
    def is_table(self) -> bool:
        """Whether each class has a column of its own."""
        return self.columns == self.given_names

    def describe(self) -> str:
        return self.columns[0] if len(self.columns) == 1 else ", ".join(self.columns[:10])

    def _column(self, dataset: Dataset, wanted: str | None) -> str:
        if wanted is not None:
            found = [wanted] if wanted in dataset.column_names else []
        else:
            lists = [name for name, each in dataset.features.items() if isinstance(each, (List, LargeList))]
            found = lists or [name for name in ("labels", "label") if name in dataset.column_names]
        if len(found) != 1:
            raise ValueError(
                f"--problem_type {MULTI_LABEL} needs a column with a list of labels for each image, or with labels "
                f"joined by {SEPARATOR} (--label_column_name), or a column of 0 and 1 for each of --class_names; "
                f"columns: {', '.join(dataset.column_names)}"
            )
        column, feature = found[0], dataset.features[found[0]]
        is_list = isinstance(feature, (List, LargeList))
        if not is_list and not any(SEPARATOR in str(value) for value in _values(dataset, column)):
            raise ValueError(
                f"column {column!r} holds one label for each image: leave --problem_type {MULTI_LABEL} out, or name "
                "another column with --label_column_name"
            )
        return column

    def _names(self, dataset: Dataset) -> list[str]:
        inner = getattr(self.feature, "feature", None)
        if isinstance(inner, ClassLabel):
            return list(inner.names)
        rows = [_as_list(value) or [] for value in _values(dataset, self.columns[0])]
        if self._is_multi_hot(rows):
            raise ValueError(
                f"column {self.columns[0]!r} says yes or no of classes without a name: give --class_names"
            )
        return [str(name) for name in sorted({each for row in rows for each in row})]

    def _is_multi_hot(self, rows: list[list[Any]]) -> bool:
        dtype = getattr(getattr(self.feature, "feature", None), "dtype", "")
        # A list of labels never names one twice.
        return dtype == "bool" or "float" in dtype or any(len(set(row)) < len(row) for row in rows)

    def targets(self, dataset: Dataset, split: str, class_names: Sequence[str]) -> np.ndarray:
        """Return (N, C) int8, in the order of `class_names`.

        Raises:
            ValueError: a label without a class, or an entry that is neither yes, no nor unknown.
        """
        absent = [column for column in self.columns if column not in dataset.column_names]
        if absent:
            raise ValueError(f"the {split} split has no column {absent[0]!r}; columns: {dataset.column_names}")
        index_of = {name: index for index, name in enumerate(class_names)}
        if self.is_table:
            rows = list(zip(*(_values(dataset, column) for column in self.columns)))
            return self._of_multi_hot(rows, split, self.class_names, index_of)
        lists = [_as_list(value) for value in _values(dataset, self.columns[0])]
        if self._is_multi_hot([row or [] for row in lists]):
            return self._of_multi_hot(lists, split, self.class_names, index_of)
        targets = np.zeros((len(lists), len(class_names)), np.int8)
        names = self.class_names if isinstance(getattr(self.feature, "feature", None), ClassLabel) else None
        for number, row in enumerate(lists):
            if row is None:
                targets[number] = UNKNOWN
            for label in row or ():
                targets[number, _index(str(names[label] if names else label), split, index_of)] = 1
        return targets

    def _of_multi_hot(
        self, rows: Sequence[Any], split: str, own_names: Sequence[str], index_of: dict[str, int]
    ) -> np.ndarray:
        targets = np.full((len(rows), len(index_of)), UNKNOWN, np.int8)
        order = [_index(name, split, index_of) for name in own_names]
        for number, row in enumerate(rows):
            if row is None:
                continue
            if len(row) != len(own_names):
                raise ValueError(
                    f"sample {number} of the {split} split has {len(row)} entries of yes and no for "
                    f"{len(own_names)} classes"
                )
            for index, entry in zip(order, row):
                value = _AS_WRITTEN.get(entry, entry) if isinstance(entry, str) else entry
                if value not in (0, 1, UNKNOWN, None):
                    raise ValueError(
                        f"sample {number} of the {split} split has {entry!r} for a label, which can be 1, 0 or, where "
                        "it is not known, -1 or nothing"
                    )
                targets[number, index] = UNKNOWN if value is None else value
        return targets


def _values(dataset: Dataset, column: str) -> list[Any]:
    return dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        return [each.strip() for each in value.split(SEPARATOR) if each.strip()]
    return value if value is None or isinstance(value, list) else [value]


def _index(name: str, split: str, index_of: dict[str, int]) -> int:
    if name not in index_of:
        raise ValueError(
            f"the {split} split has labels without a class: {name}; classes: {', '.join(list(index_of)[:20])}"
        )
    return index_of[name]


class MultiLabelLoss:
    """`(logits (B, C), targets (B, C)) -> scalar`: the mean over the labels that are known.

    "asymmetric" is ASL (arXiv 2009.14119) with the paper's exponents, 0 of what is there and 4 of what is not, and
    its margin, 0.05; "focal" has one exponent for both and no margin; any other is the binary cross entropy.

    Args:
        class_weights: (C,): each label counts by its class's weight.
    """

    def __init__(self, arguments: LossArguments, class_weights: Sequence[float] | None = None):
        self.smoothing = arguments.label_smoothing_factor
        self.weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
        self.exponents, self.margin = {
            "asymmetric": ((0.0, _NEGATIVE_GAMMA), _MARGIN),
            "focal": ((arguments.focal_gamma, arguments.focal_gamma), 0.0),
        }.get(arguments.loss_type, ((0.0, 0.0), 0.0))

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = (targets >= 0).float()
        yes = targets.clamp(min=0).float()
        if self.smoothing:
            yes = (1 - self.smoothing) * yes + self.smoothing / 2
        losses = self._losses(logits.float(), yes)
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
            losses = losses * self.weights
        return (losses * known).sum() / known.sum().clamp(min=1)

    def _losses(self, logits: torch.Tensor, yes: torch.Tensor) -> torch.Tensor:
        """(B, C)."""
        if not any(self.exponents):
            return F.binary_cross_entropy_with_logits(logits, yes, reduction="none")
        of_yes, of_no = self.exponents
        probability = logits.sigmoid()
        log_no = F.logsigmoid(-logits)
        if self.margin:
            shifted = (probability - self.margin).clamp(min=0)
            log_no = torch.log1p(-shifted)
        else:
            shifted = probability
        there = yes * (1 - probability) ** of_yes * F.logsigmoid(logits)
        return -(there + (1 - yes) * shifted**of_no * log_no)
