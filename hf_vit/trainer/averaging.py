"""Averages of the weights: exponential moving, or of the last epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_vit.config import argument, check_range


@dataclass
class EmaArguments:
    _argument_group_name: ClassVar[str] = "Averaged weights"
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "ema_decay": ("num_averaged_epochs",),
        "num_averaged_epochs": ("ema_decay",),
    }

    ema_decay: float | None = argument(None, help="Decay of the moving average of the weights; none when not given.")
    num_averaged_epochs: int | None = argument(
        None, help="Mean of the weights that so many last epochs ended with (checkpoint averaging); none by default."
    )
    use_ema_weights: bool = argument(True, help="Evaluate and save the averaged weights when there are some.")

    def __post_init__(self) -> None:
        check_range("ema_decay", self.ema_decay, 0, 1)
        check_range("num_averaged_epochs", self.num_averaged_epochs, 1)
        if self.ema_decay is not None and self.num_averaged_epochs is not None:
            raise ValueError("give either --ema_decay or --num_averaged_epochs")

    @property
    def averages(self) -> bool:
        """Whether there are averaged weights."""
        return self.ema_decay is not None or self.num_averaged_epochs is not None


class WeightAverage(AveragedModel):
    """An average of a model's parameters and buffers, whose number of updates is known without asking the device.

    Args:
        share: number of an update, from 1, to the share that the weights then have in the average, in [0, 1].
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float]):
        super().__init__(model, use_buffers=True)  # its counter, `n_averaged`, stays on the CPU
        self.share = share

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights in as they are after another step."""
        update = int(self.n_averaged) + 1
        weight = 1.0 if update == 1 else self.share(update)
        kinds: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        pairs = zip(chain(self.module.parameters(), self.module.buffers()), chain(model.parameters(), model.buffers()))
        for averaged, current in pairs:
            averages, weights = kinds.setdefault((averaged.device, averaged.dtype), ([], []))
            averages.append(averaged)
            weights.append(current.detach().to(averaged.device))
        for averages, weights in kinds.values():
            if weight < 1 and averages[0].is_floating_point():
                torch._foreach_lerp_(averages, weights, weight)
            elif weight:
                torch._foreach_copy_(averages, weights)
        self.n_averaged += 1


def averaged_model(
    model: nn.Module, arguments: EmaArguments, num_steps: int, steps_per_epoch: int, sharding: str | None = None
) -> WeightAverage | None:
    """An average of `model`'s parameters and buffers, updated with `update_parameters(model)` after every step.

    None when none is wanted.

    Args:
        sharding: how processes share the weights out, None if they do not.

    Raises:
        ValueError: an average is wanted of weights that are shared out.
    """
    if sharding is not None and arguments.averages:
        raise ValueError(
            f"weights cannot be averaged where processes share them out ({sharding}): leave out --ema_decay and "
            "--num_averaged_epochs"
        )
    if arguments.ema_decay is not None:
        share = ema_share(arguments.ema_decay)
    elif arguments.num_averaged_epochs is not None:
        share = last_epochs_share(arguments.num_averaged_epochs, num_steps, steps_per_epoch)
    else:
        return None
    return WeightAverage(model, share).requires_grad_(False).eval()


def ema_share(decay: float) -> Callable[[int], float]:
    """Share of the weights after update t in their exponential moving average.

    The decay warms up as min(decay, t / (9 + t)), so that the random start is soon forgotten.
    """
    return lambda update: 1 - min(decay, update / (9 + update))


def last_epochs_share(num_epochs: int, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Share of the weights after update t in the mean over the ends of the last epochs: 0 within an epoch.

    Before the last epochs, the average is the weights at the last epoch's end.
    """
    num_epochs = min(num_epochs, -(-num_steps // steps_per_epoch))

    def share(update: int) -> float:
        if update % steps_per_epoch and update != num_steps:
            return 0.0
        remaining = -(-(num_steps - update) // steps_per_epoch)  # epoch ends still to come
        return 1 / max(num_epochs - remaining, 1)

    return share
