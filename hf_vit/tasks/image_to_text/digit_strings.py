"""Strips of two to six handwritten digits, and the numbers that they show: scikit-learn's digits of 8 x 8 pixels, each
in one split alone, set side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures
from sklearn.datasets import load_digits

HEIGHT, WIDTH = 16, 84  # of a strip, pixels
SIDE = 12  # of a digit in it
NUM_EXAMPLES = {"train": 20_000, "validation": 500, "test": 2_000}
_NUM_DIGITS = {"test": 360, "validation": 180}  # the rest trains
_LENGTHS, _GAPS = (2, 6), (-3, 2)
_SEED = 0

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def whole(digit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A digit as it was written: (8, 8) uint8 -> (SIDE, SIDE) uint8."""
    return np.asarray(Pictures.fromarray(digit).resize((SIDE, SIDE), Pictures.Resampling.BICUBIC))


def distorted(digit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A digit as it could have been written too, a little turned, slanted, wider or higher: shapes as `whole`."""
    angle, slant = generator.normal(0, 0.12, 2)
    size, width = 1 + generator.normal(0, 0.08, 2)
    x, y = 4 - generator.uniform(-0.6, 0.6, 2)
    turn = np.array(
        [
            [math.cos(angle) / (size * width), slant - math.sin(angle) / size],
            [math.sin(angle) / (size * width), math.cos(angle) / size],
        ]
    ) * (8 / SIDE)
    left, top = np.array([x, y]) - turn @ np.array([SIDE / 2, SIDE / 2])
    matrix = (*turn[0], left, *turn[1], top)
    turned = Pictures.fromarray(digit).transform(
        (SIDE, SIDE), Pictures.Transform.AFFINE, matrix, Pictures.Resampling.BICUBIC
    )
    return np.asarray(turned)


def _strip(digits: list[np.ndarray], draw: Draw, generator: np.random.Generator) -> np.ndarray:
    """Digits at random heights and distances, the first anywhere that leaves room for the rest: (HEIGHT, WIDTH)."""
    gaps = generator.integers(_GAPS[0], _GAPS[1] + 1, len(digits) - 1)
    width = len(digits) * SIDE + int(gaps.sum())
    strip, left = np.zeros((HEIGHT, WIDTH), np.uint8), int(generator.integers(0, WIDTH - width + 1))
    for digit, gap in zip(digits, [*gaps, 0]):
        top = int(generator.integers(0, HEIGHT - SIDE + 1))
        part = strip[top : top + SIDE, left : left + SIDE]
        np.maximum(part, draw(digit, generator), out=part)
        left += SIDE + int(gap)
    return strip


def _png(strip: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pictures.fromarray(strip).save(buffer, format="png")
    return buffer.getvalue()


def draw_digit_strings() -> DatasetDict:
    """`train`, `validation` and `test`, always the same; no digit is in two of them. Training strips are of digits
    distorted a little, the others of digits as they were written."""
    digits = load_digits()
    pictures, values = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    generator = np.random.default_rng(_SEED)
    order = generator.permutation(len(values))
    num_test, num_validation = _NUM_DIGITS["test"], _NUM_DIGITS["validation"]
    parts = np.split(order, [num_test, num_test + num_validation])
    features = Features({"image": Image(), "text": Value("string"), "digits": [Value("int64")]})
    splits = {}
    for split, known in zip(("test", "validation", "train"), parts):
        draw = distorted if split == "train" else whole
        rows: dict[str, list] = {"image": [], "text": [], "digits": []}
        for _ in range(NUM_EXAMPLES[split]):
            chosen = generator.choice(known, generator.integers(_LENGTHS[0], _LENGTHS[1] + 1))
            strip = _strip([pictures[index] for index in chosen], draw, generator)
            rows["image"].append({"bytes": _png(strip), "path": None})
            rows["text"].append("".join(str(values[index]) for index in chosen))
            rows["digits"].append(chosen.tolist())
        splits[split] = Dataset.from_dict(rows, features=features)
    return DatasetDict(splits)
