"""The learning rate range test (arXiv 1506.01186): the rate rises from step to step, to see where the loss falls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from hf_vit.files import write_atomically
from hf_vit.trainer import loaders
from hf_vit.trainer.train_mode import train_mode

if TYPE_CHECKING:
    from hf_vit.trainer.loop import TrainingLoop

LOWEST, HIGHEST, NUM_STEPS = 1e-7, 1.0, 100
SMOOTHING = 0.9  # share of the losses before in the smoothed one
DIVERGED = 4.0  # times the least smoothed loss
FEWEST = 20  # steps that a rate can be told from
_SKIPPED = 10  # at the start, where the smoothed loss is of few steps


@dataclass(frozen=True)
class RangeTest:
    """Rates of the steps taken, the loss of each and those smoothed."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest against the logarithm of the rate, before its least."""
        end = max(int(np.argmin(self.smoothed)) + 1, _SKIPPED + 2)
        slopes = np.gradient(np.asarray(self.smoothed[:end]))
        return self.rates[_SKIPPED + int(np.argmin(slopes[_SKIPPED:]))]


def range_test(step: Callable[[float], float], rates: list[float]) -> RangeTest:
    """Take a step at each rate until the loss diverges.

    Args:
        step: takes one optimizer step at a rate, and returns the loss before it.
        rates: rising by one factor.

    Raises:
        ValueError: the loss diverges before there is anything to tell, or never falls.
    """
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for number, rate in enumerate(rates, start=1):
        loss = step(rate)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        value = average / (1 - SMOOTHING**number)
        if not math.isfinite(loss) or (smoothed and value > DIVERGED * min(smoothed)):
            break
        losses.append(loss)
        smoothed.append(value)
    if len(losses) < FEWEST:
        raise ValueError(
            f"--find_learning_rate: the loss diverged after {len(losses)} steps, at a learning rate of only "
            f"{rates[len(losses)]:.3g}: look at the data, the labels and how images are normalised"
        )
    if min(smoothed[_SKIPPED:]) >= smoothed[0]:
        highest = rates[len(losses) - 1]
        raise ValueError(f"--find_learning_rate: the loss fell at no learning rate from {rates[0]:g} to {highest:.3g}")
    return RangeTest(rates[: len(losses)], losses, smoothed)


def find_learning_rate(loop: TrainingLoop) -> str:
    """Take up to 100 steps at rates from 1e-7 to 1, each with its own batch, and draw the losses beside the run's
    folder; what is trained by it is lost. Returns sentences on what was found.

    Raises:
        ValueError: see `range_test`.
    """
    ratio = (HIGHEST / LOWEST) ** (1 / (NUM_STEPS - 1))
    groups = loop.optimizer.param_groups
    highest = max(group["initial_lr"] for group in groups)
    shares = [group["initial_lr"] / highest for group in groups]
    batches = _endless(loop)
    train_mode(loop.model)

    def step(rate: float) -> float:
        for group, share in zip(groups, shares):
            group["lr"] = rate * share
        return _step(loop, batches)

    found = range_test(step, [LOWEST * ratio**number for number in range(NUM_STEPS)])
    path = loop.output_dir.with_name(f"{loop.output_dir.name}_learning_rate.png")
    if loop.accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(found, path)
        content = {"suggestion": found.suggestion, **vars(found)}
        write_atomically(path.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())
    return (
        f"the loss falls fastest at --learning_rate {found.suggestion:.2g}; losses at {len(found.rates)} rates are in "
        f"{path} and {path.with_suffix('.json').name}"
    )


def _endless(loop: TrainingLoop) -> Iterator[Any]:
    epoch = 0
    while True:
        loop.schedule.set_epoch(epoch)
        yield from loaders.loader_from(loop.train_loader, epoch, 0)
        epoch += 1


def _step(loop: TrainingLoop, batches: Iterator[Any]) -> float:
    """Mean loss of one optimizer step over its batches and processes."""
    losses = []
    while True:
        with loop.accelerator.accumulate(loop.model):
            with loop.accelerator.autocast():
                loss = loop.task.training_step(loop.model, next(batches)).loss
            losses.append(float(loss.detach()))
            loop.accelerator.backward(loss)
            if loop.accelerator.sync_gradients:
                limit = loop.arguments.optimization.max_grad_norm or float("inf")
                loop.accelerator.clip_grad_norm_(loop.model.parameters(), limit)
            loop.optimizer.step()
            loop.optimizer.zero_grad()
        if loop.accelerator.sync_gradients:
            return float(np.mean(gather_object(losses)))


def draw(found: RangeTest, path: Path) -> None:
    """Losses against the rate, and the rate at which they fall fastest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#0072B2", alpha=0.3, label="of each step")
    axes.plot(found.rates, found.smoothed, color="#0072B2", label="smoothed")
    axes.axvline(found.suggestion, color="#D55E00", linestyle="--", label=f"falls fastest: {found.suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(top=max(found.smoothed) * 1.1)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats)")
    axes.legend(loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
