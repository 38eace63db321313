"""Classes of unequal sizes: their weights in the loss, and how rare they are.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_vit.config import argument, read_yaml
from hf_vit.files import read_utf8

RARE = 20  # times fewer images than the largest class has
AUTO = "auto"


@dataclass
class ImbalanceArguments:
    _argument_group_name: ClassVar[str] = "Imbalance"

    class_weights: str | None = argument(
        None,
        help="Weight of each class in the loss: `auto`, the inverse of its number of training images, with mean 1; or "
        "a YAML or JSON file of each class's name and weight.",
    )
    balanced_sampling: bool = argument(
        False, help="Draw equally many training images of each class in an epoch, those of small classes repeatedly."
    )


def weights_of(given: str, counts: np.ndarray, class_names: Sequence[str]) -> list[float]:
    """The weight of each class.

    Args:
        given: "auto" or the path of a file.
        counts: training images of each class, (C,).

    Raises:
        ValueError: a class has no training images; or the file lacks a class, has one that does not exist, or a
            weight that is not a number above 0.
    """
    if given == AUTO:
        check_present("--class_weights auto", counts, class_names)
        inverse = 1 / counts
        return (inverse / inverse.mean()).tolist()
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"--class_weights must be auto or a file, found {given!r}")
    found = read_yaml(read_utf8(path))
    if not isinstance(found, Mapping):
        raise ValueError(f"--class_weights {given!r} must hold `name: weight` for each class, found {found!r}")
    weights = {str(name): value for name, value in found.items()}
    for what, names in (
        ("has weights of classes that do not exist", set(weights) - set(class_names)),
        ("has no weight of", set(class_names) - set(weights)),
    ):
        if names:
            raise ValueError(f"--class_weights {given!r} {what}: {', '.join(sorted(names)[:10])}")
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(
                f"--class_weights {given!r}: the weight of {name!r} must be a number > 0, found {value!r}"
            )
    return [float(weights[name]) for name in class_names]


def check_present(what: str, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise `ValueError` where a class has no training images."""
    if (counts == 0).any():
        name = class_names[int(np.flatnonzero(counts == 0)[0])]
        raise ValueError(f"{what} needs training images of every class, and {name!r} has none")


def rarity(counts: np.ndarray, class_names: Sequence[str]) -> str | None:
    """A sentence on the rarest class where it is `RARE` times rarer than the largest one, else None."""
    if counts.min() * RARE > counts.max():
        return None
    low, high = int(counts.argmin()), int(counts.argmax())
    return (
        f"train has {counts[high]:,} images of {class_names[high]!r} and {counts[low]:,} of {class_names[low]!r}, "
        f"{RARE} times fewer or less: accuracy hides such a class, --metric_for_best_model balanced_accuracy does "
        "not; --class_weights, --balanced_sampling and --loss_type logit_adjusted may help it"
    )


def mean_recall(matrix: Any) -> float:
    """Balanced accuracy: the mean recall of the classes that occur, from counts by true and predicted class (C, C)."""
    matrix = np.asarray(matrix)
    support = matrix.sum(axis=1)
    return float((matrix.diagonal()[support > 0] / support[support > 0]).mean())
