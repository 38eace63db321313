"""Scikit-learn's handwritten digits, each turned by an angle that its sample key decides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import Dataset

from hf_vit.sample_keys import SampleKey, seed_of

from .arguments import RotationDataArguments

NUM_TRAIN = 1437  # of 1,797: the digits of other writers are left for the test


def turned(image: torch.Tensor, angle: float) -> torch.Tensor:
    """An image (1, H, W), turned counterclockwise by an angle in degrees about its centre, bilinear."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]], dtype=image.dtype)
    grid = F.affine_grid(matrix, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, align_corners=False)[0]


class TurnedDigits(Dataset):
    """Items hold `pixel_values` (1, 8, 8) in [-1, 1], `angle` () in degrees and `sample_key` (3,).

    A key's epoch, index and repeat fix the angle, so that any number of processes and workers sees the same; a plain
    index stands for that sample's view in an evaluation.
    """

    def __init__(self, images: torch.Tensor, max_angle: float, seed: int):
        self.images = images  # (N, 1, 8, 8)
        self.max_angle = max_angle
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey | int) -> dict[str, torch.Tensor]:
        epoch, index, repeat = key if isinstance(key, SampleKey) else SampleKey(0, key, 0)
        generator = np.random.default_rng(seed_of(self.seed, epoch, index, repeat))
        angle = generator.uniform(-self.max_angle, self.max_angle)
        return {
            "pixel_values": turned(self.images[index], angle),
            "angle": torch.tensor(angle, dtype=torch.float32),
            "sample_key": torch.tensor([epoch, index, repeat]),
        }


@dataclass
class RotationData:
    """Splits by name: see `Task.data`."""

    splits: dict[str, TurnedDigits]

    def describe(self) -> dict[str, Any]:
        splits = {
            name: {
                "num_examples": len(split),
                "fingerprint": hashlib.sha256(split.images.numpy().tobytes()).hexdigest()[:16],
            }
            for name, split in self.splits.items()
        }
        return {"name": "scikit-learn's digits, turned", "splits": splits}


def load_turned_digits(arguments: RotationDataArguments, seed: int) -> RotationData:
    """The train and test split, cut to `max_train_samples` and `max_eval_samples`."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    train, test = images[:NUM_TRAIN][: arguments.max_train_samples], images[NUM_TRAIN:][: arguments.max_eval_samples]
    splits = {"train": train, "test": test}
    return RotationData({name: TurnedDigits(each, arguments.max_angle, seed) for name, each in splits.items()})
