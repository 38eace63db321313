"""How the benchmarks take time: in turns, so that a machine that slows down slows all alike."""

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def timed(function: Callable[[], object], clock: str = "wall") -> float:
    """Seconds that a call takes, with what it leaves a GPU to do.

    Args:
        clock: "wall", or "processor" for the time of all threads of this process: what another program takes from
            them is not in it, so with one thread it can be trusted on a machine that is not one's own.
    """
    read = CLOCKS[clock]
    _finish()
    start = read()
    function()
    _finish()
    return read() - start


def interleaved_medians(
    functions: dict[str, Callable[[], object]],
    seconds: float,
    clock: str = "wall",
    at_least: int = 5,
    pause: float = 0,
) -> dict[str, float]:
    """Median time of each function in seconds.

    Args:
        functions: called in turns, after a round that warms up.
        seconds: time for all rounds together, of which there are at least `at_least`.
        pause: seconds before each call: threads of OpenMP keep their cores for 0.2 s after their work.
    """
    for _ in range(2 if at_least > 1 else 1):
        first = sum(timed(function) for function in functions.values())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(max(at_least, min(200, int(seconds / max(first, 1e-4))))):
        for name, function in functions.items():
            time.sleep(pause)
            times[name].append(timed(function, clock))
    return {name: statistics.median(values) for name, values in times.items()}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power with which values grow with sizes: the slope of the line through the logarithms of both."""
    logarithms = [[math.log(number) for number in numbers] for numbers in (sizes, values)]
    return statistics.linear_regression(*logarithms).slope


def peak_bytes(function: Callable[[], object]) -> int | None:
    """Memory that a call takes beyond what was held before, at its height; None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept would be taken anew unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
