"""How far the angles are off that a model answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from hf_vit.tasks.task import Batch, Evaluator

NEAR = 10  # degrees


def direction(angle: torch.Tensor) -> torch.Tensor:
    """Cosine and sine (B, 2) of angles (B,) in degrees: what the model answers, for 180 and -180 are the same."""
    return torch.stack([angle.deg2rad().cos(), angle.deg2rad().sin()], dim=-1)


class RotationEvaluator(Evaluator):
    """`loss`, the mean squared error of the direction; `mean_error` in degrees; `near`, the part within 10 degrees.

    Args:
        final: keep what was answered for each sample.
        num_samples: how many of them the card shows.
    """

    def __init__(self, *, final: bool, num_samples: int = 0):
        self.num_samples = num_samples
        self.state: dict[str, Any] = {"squared": 0.0, "error": 0.0, "near": 0, "count": 0}
        if final:
            self.state["rows"] = []

    def step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return model(pixel_values=batch["pixel_values"]).logits.float()  # (B, 2)

    def update(self, batch: Batch, outputs: torch.Tensor) -> None:
        angles = batch["angle"]
        answers = torch.atan2(outputs[:, 1], outputs[:, 0]).rad2deg()
        errors = ((answers - angles + 180) % 360 - 180).abs()
        self.state["squared"] += float(F.mse_loss(outputs, direction(angles), reduction="sum")) / 2
        self.state["error"] += float(errors.sum())
        self.state["near"] += int((errors <= NEAR).sum())
        self.state["count"] += len(errors)
        if "rows" in self.state:
            columns = zip(batch["sample_key"][:, 1].tolist(), angles.tolist(), answers.tolist())
            self.state["rows"] += [{"index": i, "angle": angle, "answer": answer} for i, angle, answer in columns]

    def compute(self) -> dict[str, Any]:
        count = self.state["count"]
        return {
            "loss": self.state["squared"] / count,
            "mean_error": self.state["error"] / count,
            "near": self.state["near"] / count,
        }

    def predictions(self) -> Iterator[dict[str, Any]]:
        return iter(sorted(self.state["rows"], key=lambda row: row["index"]))

    def save_samples(self, folder: Any) -> list[dict[str, Any]]:
        return list(self.predictions())[: self.num_samples]
