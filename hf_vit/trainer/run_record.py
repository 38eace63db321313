"""run.json: everything a run knows about itself, written after every epoch; the model card is made from it."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from hf_vit.config import Arguments
from hf_vit.files import write_atomically
from hf_vit.record import PREDICTIONS_FILE, RUN_FILE, SCHEMA_VERSION, Record, read_record, record_from

if TYPE_CHECKING:
    from hf_vit.tasks.task import Evaluator

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "torchvision", "hf_vit")


_SCHEDULE = (
    *("num_train_epochs", "max_train_steps", "lr_scheduler_type", "learning_rate", "warmup_ratio", "warmup_steps"),
    *("lr_scheduler_kwargs", "lr_base_batch_size"),
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the clone that trains, `-dirty` when it has changes; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the device, or of the main process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every platform that trains on a GPU

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """`versions`, `git_commit` and `hardware`: what ran, and where."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git_commit": _git_commit(),
        "hardware": {
            "device": accelerator.device.type,
            "device_name": device_name(accelerator.device),
            "num_processes": accelerator.num_processes,
            "cpu_threads": torch.get_num_threads(),
            "mixed_precision": accelerator.mixed_precision,
        },
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value)


def write_predictions(evaluator: Evaluator, folder: Path) -> None:
    """Put what the model made of each sample of a last evaluation into a folder, if the task can tell."""
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in evaluator.predictions()]
    except NotImplementedError:
        return
    write_atomically(folder / PREDICTIONS_FILE, "".join(lines).encode())


def _program() -> list[str]:
    """Words that start a training as this one was: those of an installed package, or of a clone."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and module.name == "hf_vit.train":
        return ["hf-vit", "train"]
    return ["accelerate", "launch", "training/train.py"]


class RunRecord:
    """The record of the run under way; `write` puts it into a folder atomically.

    Raises:
        ValueError: what it is to hold is not in the schema, here as in `update`.
    """

    def __init__(self, arguments: Arguments, accelerator: Accelerator, described: dict[str, Any]):
        self.accelerator = accelerator
        self._record = record_from(
            {
                "schema_version": SCHEMA_VERSION,
                "task": arguments.run.task,
                "status": "running",
                "command": shlex.join([*_program(), *arguments.command]),
                "recipe": arguments.run.recipe,
                "arguments": arguments.to_dict(),
                "non_default_arguments": arguments.explicit,
                "seed": arguments.run.seed,
                **environment(accelerator),
                **described,
                "epochs": [],
            }
        )
        self._earlier_peak = 0

    @property
    def baselines(self) -> str:
        """What simple baselines reach, in words; nothing where none was measured."""
        told = ", ".join(f"{name} {value:.2%}" for name, value in self._record.baselines.items())
        return f" (the frozen start: {told})" if told else ""

    @property
    def content(self) -> Record:
        """Facts known by now, under the names of the schema."""
        return self._record

    def go_on(self, folder: Path, step: int) -> list[str]:
        """Keep what this process cannot know of the run's earlier parts, the baselines, the peak memory and changes of
        the schedule; sentences that say what changes now, after `step` steps."""
        if not (folder / RUN_FILE).is_file():
            return []
        earlier = read_record(folder)
        self._earlier_peak = earlier.peak_memory_bytes or 0
        self.update(baselines=earlier.baselines)
        now, before = self._record.arguments, earlier.arguments
        changes = [
            {"step": step, "name": name, "before": str(_plain(before[name])), "after": str(_plain(now[name]))}
            for name in _SCHEDULE
            if name in before and name in now and str(_plain(before[name])) != str(_plain(now[name]))
        ]
        self.update(schedule_changes=[*(change.to_dict() for change in earlier.schedule_changes), *changes])
        sentence = "from here on the learning rate has another schedule: {name} {after}, until step {step:,} {before}"
        return [sentence.format(**change) for change in changes]

    def update(self, **values: Any) -> None:
        """Set fields of the record, as JSON has them."""
        peak = max(self._earlier_peak, peak_memory_bytes(self.accelerator.device))
        self._record = record_from({**self._record.to_dict(), **values, "peak_memory_bytes": peak})

    def write(self, folder: Path) -> None:
        text = json.dumps(self._record.to_dict(), indent=1, default=_plain, ensure_ascii=False)
        write_atomically(folder / RUN_FILE, (text + "\n").encode())
