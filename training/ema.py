"""Exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.arguments import argument, check_range


@dataclass
class EmaArguments:
    _argument_group_name: ClassVar[str] = "Exponential moving average"
    key: ClassVar[str] = "ema"

    ema_decay: float | None = argument(None, help="Decay of the moving average of the weights; none when not given.")
    use_ema_weights: bool = argument(True, help="Evaluate and save the averaged weights when there are some.")

    def __post_init__(self):
        check_range("ema_decay", self.ema_decay, 0, 1)


def ema_model(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of `model`'s parameters and buffers, updated with `update_parameters(model)`.

    The decay warms up as min(decay, (1 + t) / (10 + t)) over updates t, so that the random start is soon forgotten.
    """

    @torch.no_grad()
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], num_updates: torch.Tensor) -> None:
        weight = 1 - min(decay, (1 + int(num_updates)) / (10 + int(num_updates)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return averaged.requires_grad_(False).eval()
