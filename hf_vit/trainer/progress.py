"""How fast an epoch runs, and how much of it is spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from hf_vit.trainer.budget import Budget
from hf_vit.trainer.run_record import peak_memory_bytes


class Meter:
    """Counts from its creation.

    Args:
        samples_per_batch: of all processes together.
        budget: says how much of the devices' speed is used.
    """

    def __init__(self, samples_per_batch: int, budget: Budget):
        self.samples_per_batch = samples_per_batch
        self.budget = budget
        self.batches = 0
        self.waited = 0.0
        self._started = self._lap = time.perf_counter()
        self._stopped: float | None = None

    def timed(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; the time until each one is there counts as waiting."""
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.batches += 1
            yield batch

    def stop(self) -> None:
        """Ends the measurement, once or until `go_on`: what follows is not part of it."""
        self._stopped = self._stopped or time.perf_counter()

    def go_on(self) -> None:
        """Leaves the time since `stop` out."""
        assert self._stopped is not None
        pause = time.perf_counter() - self._stopped
        self._started, self._lap, self._stopped = self._started + pause, self._lap + pause, None

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the end, or to now."""
        return (self._stopped or time.perf_counter()) - self._started

    def lap(self) -> float:
        """Seconds since the last call, or the start, to the end, or to now."""
        previous, self._lap = self._lap, self._stopped or time.perf_counter()
        return self._lap - previous

    @property
    def since_lap(self) -> float:
        """Seconds since the last call of `lap`, or the start, to now."""
        return time.perf_counter() - self._lap

    @property
    def speed(self) -> float:
        """Samples per second."""
        return self.batches * self.samples_per_batch / self.elapsed

    @property
    def wait_fraction(self) -> float:
        return self.waited / self.elapsed

    def facts(self, sample_unit: str) -> dict[str, float]:
        """The measurement for the run's record."""
        mfu = self.budget.utilisation(self.speed)
        return {
            "duration_s": self.elapsed,
            f"{sample_unit}_per_second": self.speed,
            "data_wait_fraction": self.wait_fraction,
            **({} if mfu is None else {"mfu": mfu}),
        }

    def postfix(self, sample_unit: str, loss: float | None) -> str:
        """Words beside the bar: the mean loss of the epoch so far, where it is known, speed and peak memory."""
        memory = peak_memory_bytes(self.budget.device)
        start = "" if loss is None else f"loss {loss:.3f}, "
        return f"{start}{self.told(sample_unit)}, {memory / 2**30:.1f} GiB"

    def told(self, sample_unit: str, with_mfu: bool = False) -> str:
        """Speed and waiting in words, and the model FLOPs utilisation where it is known and wanted."""
        mfu = self.budget.utilisation(self.speed) if with_mfu else None
        used = "" if mfu is None else f", MFU {mfu:.1%}"
        return f"{self.speed:,.0f} {sample_unit}/s{used}, waiting for data {self.wait_fraction:.0%} of the time"


def progress_bar(num_steps: int, step: int, is_main: bool) -> tqdm:
    """A bar of optimizer steps on the terminal of the main process."""
    return tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True, disable=None if is_main else True)
