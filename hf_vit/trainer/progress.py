"""How fast an epoch runs, and how much of it is spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


class Meter:
    """Counts from its creation.

    Args:
        samples_per_batch: of all processes together.
    """

    def __init__(self, samples_per_batch: int):
        self.samples_per_batch = samples_per_batch
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
        """Ends the measurement: what follows is not part of it."""
        self._stopped = time.perf_counter()

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


def progress_bar(num_steps: int, step: int, is_main: bool) -> tqdm:
    """A bar of optimizer steps on the terminal of the main process."""
    return tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True, disable=None if is_main else True)
