"""Losses of a run, read back without keeping the device waiting, and steps that a loss not finite must not make.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from hf_vit.trainer.signals import SIGNALS

if TYPE_CHECKING:
    from hf_vit.tasks.task import StepOutput


@dataclass
class _Batch:
    """A batch of a step under way: its values on the device, the loss first, and the names of the others."""

    values: list[torch.Tensor]
    names: tuple[str, ...]
    indices: list[int]


@dataclass
class _Step:
    """An optimizer step whose numbers are on their way to the CPU: the values of its batches, the gradient's norm,
    how many processes found one not finite, and how many received each signal."""

    number: int
    learning_rate: float
    batches: list[_Batch]
    numbers: torch.Tensor
    copied: torch.Event | None


class StepWatch:
    """Follows the losses of the steps on the device, and reads each step's when the next one is under way.

    A step is not made on any process where a loss, a term of it or the gradient is not finite on one of them, and no
    step after it: `skip`, a scalar on the device, is 1 from then on, and the optimizer heeds it (`found_inf`, which
    its fused kernels read). The weights stay those of the last good step until the error is raised. With a gradient
    scaler, infinite gradients are its business; DeepSpeed makes its steps itself, and the error alone is left.

    Args:
        optimizer: whose update is fused.
        checkpoints: the folder of the run's checkpoints, which an error names.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, checkpoints: Path):
        self.accelerator = accelerator
        self.checkpoints = checkpoints
        self.skip = torch.zeros((), device=accelerator.device)
        self.signal = 0  # that a process is known to have received
        self._batches: list[_Batch] = []
        self._steps: deque[_Step] = deque()
        if accelerator.distributed_type != DistributedType.DEEPSPEED and accelerator.scaler is None:
            optimizer.found_inf = self.skip  # type: ignore[attr-defined]  # torch reads it

    def add(self, output: StepOutput, sample_key: np.ndarray) -> None:
        """Note a batch of the step under way.

        Args:
            sample_key: (B, 3).
        """
        values = [value.detach() for value in (output.loss, *output.logs.values())]
        self._batches.append(_Batch(values, tuple(output.logs), sample_key[:, 1].tolist()))

    def close(self, number: int, learning_rate: float, gradient_norm: torch.Tensor | None, received: int) -> None:
        """End a step before the optimizer makes it. Every process calls it.

        Args:
            number: of the step, from 1.
            gradient_norm: None where the optimizer clips by itself and gives none.
            received: the signal that this process has received, 0 for none.
        """
        values = [value for batch in self._batches for value in batch.values]
        if gradient_norm is None or self.accelerator.scaler is not None:
            gradient_norm = torch.zeros_like(self.skip)
        # That of weights that are shared out may be so itself, and DeepSpeed's is a number.
        norm: Any = getattr(gradient_norm, "full_tensor", lambda: gradient_norm)()
        if not isinstance(norm, torch.Tensor):
            norm = torch.full_like(self.skip, norm)
        numbers = torch.stack([value.float() for value in (*values, norm)])
        found = torch.logical_not(torch.isfinite(numbers).all()).float()[None]
        if self.accelerator.num_processes > 1:  # all must stop together, for whatever reason
            signals = [torch.full_like(found, float(received == signal)) for signal in SIGNALS]
            found = self.accelerator.reduce(torch.cat([found, *signals]), "sum")
        else:
            self.signal = received
        torch.maximum(self.skip, found[0].clamp(max=1), out=self.skip)
        numbers = torch.cat([numbers, found]).to("cpu", non_blocking=True)
        copied = None
        if self.skip.device.type != "cpu":
            copied = torch.Event(self.skip.device)
            copied.record()
        self._steps.append(_Step(number, learning_rate, self._batches, numbers, copied))
        self._batches = []

    def read(self, *, newest: bool) -> Iterator[dict[str, list[float]]]:
        """Values of the batches of each step not read yet, by name; those of the losses are under "".

        Every process calls it, at the same steps.

        Args:
            newest: the last step too, for which the device must have come so far.

        Raises:
            FloatingPointError: a loss, a term of it or the gradient was not finite on any process.
        """
        while len(self._steps) > (0 if newest else 1):
            step = self._steps.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            numbers = step.numbers.tolist()
            values: dict[str, list[float]] = {}
            losses, position = [], 0
            for batch in step.batches:
                found = numbers[position : position + len(batch.values)]
                losses.append((found, batch.indices))
                for name, value in zip(("", *batch.names), found):
                    values.setdefault(name, []).append(value)
                position += len(found)
            norm, is_bad, *signals = numbers[position:]
            if is_bad:
                self._refuse(step, losses, norm)
            self.signal = next((signal for signal, count in zip(SIGNALS, signals) if count), self.signal)
            yield values

    def _refuse(self, step: _Step, batches: Sequence[tuple[list[float], list[int]]], norm: float) -> None:
        named = [pair for batch, (values, _) in zip(step.batches, batches) for pair in zip(batch.names, values[1:])]
        terms = sorted({name for name, value in named if not math.isfinite(value)})
        raise FloatingPointError(
            f"non-finite loss or gradient at step {step.number}: loss {[values[0] for values, _ in batches]}"
            f"{', in ' * bool(terms)}{', '.join(terms)}, gradient norm {norm}, learning rate {step.learning_rate:g}, "
            f"samples {suspects(batches)}; checkpoints are in {self.checkpoints}"
        )


def suspects(batches: Sequence[tuple[list[float], list[int]]]) -> list[int]:
    """Sorted indices of the samples in those batches of all processes whose loss is not finite; of all batches when
    each loss is. Every process must call it.

    Args:
        batches: values of the loss and its terms, and indices of the samples, of each batch of this process's step.
    """
    told = gather_object(list(batches))
    chosen = [indices for values, indices in told if not all(map(math.isfinite, values))]
    return sorted({index for indices in (chosen or [indices for _, indices in told]) for index in indices})
