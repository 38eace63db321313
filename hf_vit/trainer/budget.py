"""What a run costs by `hf_vit.cost`: told with its plan, heeded before its first step, and a measure of speed."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_vit.cost import Forecast, Setup, forecast, largest_batch
from hf_vit.cost.memory import DTYPES
from hf_vit.cost.table import gib
from hf_vit.trainer.arguments import TrainingArguments

if TYPE_CHECKING:
    from hf_vit.tasks.task import Task

# Set by a container, in bytes, or "max".
_LIMIT, _IN_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


class Budget:
    """Forecast of a step of one process, and the memory there is for it.

    There is none (`forecast` is None) of models without closed forms, of texts, whose lengths differ from batch to
    batch, and where a part of the weights is trained.
    """

    def __init__(self, accelerator: Accelerator, task: Task, arguments: TrainingArguments):
        self.device, self.num_processes = accelerator.device, accelerator.num_processes
        self.options, self.config = arguments.optimization, task.model.config
        self.memory = available_bytes(accelerator.device, accelerator.state.num_processes)
        self.forecast: Forecast | None = None
        model, dtype = task.model, str(task.model.dtype).removeprefix("torch.")
        is_known = task.has_forecast and dtype in DTYPES and all(each.requires_grad for each in model.parameters())
        if not is_known:
            return
        setup = Setup(
            batch_size=self.options.per_device_train_batch_size,
            training=True,
            dtype=dtype,
            mixed_precision=accelerator.mixed_precision,
            attn_implementation="eager" if model.config._attn_implementation == "eager" else "sdpa",
            gradient_checkpointing=_is_checkpointing(model),
            optimizer="adamw" if self.options.optim == "adamw" else "sgd_momentum",
        )
        averages = arguments.ema.ema_decay is not None or arguments.ema.num_averaged_epochs is not None
        self.average_bytes = sum(each.nbytes for each in model.parameters()) * averages
        try:
            self.forecast = forecast(self.config, setup, self.memory - self.average_bytes)
        except ValueError:  # a model, or a backbone, of another family
            return

    @property
    def peak(self) -> int:
        """Bytes that a step needs; 0 where that is not known."""
        return 0 if self.forecast is None else self.forecast.memory.peak + self.average_bytes

    def told(self, sample_unit: str) -> dict[str, str]:
        """The row of the plan."""
        if self.forecast is None:
            return {}
        flops = 2 * self.forecast.step_macs / self.forecast.setup.batch_size
        verdict = "" if self.peak <= self.memory else ", does not fit"
        return {
            "cost": f"{flops / 1e9:.3g} GFLOPs for each of the {sample_unit}, {gib(self.peak)} GiB of "
            f"{gib(self.memory)} GiB{verdict} (forecast)"
        }

    def check(self) -> None:
        """Stop a run that cannot fit, unless it is to try all the same.

        Raises:
            ValueError: it needs more memory than there is; the message says what would make it fit.
        """
        if self.forecast is None or self.peak <= self.memory or self.options.ignore_memory_forecast:
            return
        saving = [f"{each.name} (saves {gib(each.saved)} GiB)" for each in self.forecast.remedies if each.saved > 0]
        raise ValueError(
            f"a step needs {gib(self.peak)} GiB by the forecast, and there are {gib(self.memory)} GiB: give "
            f"--auto_batch_size, change the model ({', '.join(saving)}), or give --ignore_memory_forecast"
        )

    def fit_batch_size(self, accelerator: Accelerator) -> None:
        """Take the largest batch that fits, for as many samples in an optimizer step as was asked for.

        Raises:
            ValueError: the memory of the model is not known, or not one sample fits.
        """
        options = self.options
        if self.forecast is None:
            raise ValueError("--auto_batch_size needs a forecast of the model's memory, and there is none of this run")
        total = options.per_device_train_batch_size * options.gradient_accumulation_steps
        most = largest_batch(self.config, self.forecast.setup, self.memory - self.average_bytes) or 0
        size = next((size for size in range(min(most, total), 0, -1) if total % size == 0), None)
        if size is None:
            raise ValueError(f"--auto_batch_size finds no batch that fits into {gib(self.memory)} GiB")
        options.per_device_train_batch_size, options.gradient_accumulation_steps = size, total // size
        accelerator.gradient_accumulation_steps = total // size
        setup = replace(self.forecast.setup, batch_size=size)
        self.forecast = forecast(self.config, setup, self.memory - self.average_bytes)

    def utilisation(self, samples_per_second: float) -> float | None:
        """Model FLOPs utilisation (2204.02311): the FLOPs of the steps, without what checkpointing computes again, as
        a part of those that a large matmul reaches on these devices; None without a forecast.

        Args:
            samples_per_second: of all processes.
        """
        if self.forecast is None:
            return None
        setup, parts = self.forecast.setup, self.forecast.parts
        flops = 2 * sum(each.macs + each.backward_macs for each in parts) / setup.batch_size
        name = {"bf16": "bfloat16", "fp16": "float16"}.get(setup.mixed_precision, setup.dtype)
        return flops * samples_per_second / (matmul_flops(self.device, name) * self.num_processes)


def _is_checkpointing(model: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on; transformers 5.24 renamed it."""
    name = "is_activation_checkpointing"
    return bool(getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing"))


@functools.lru_cache(maxsize=2)
def matmul_flops(device: torch.device, dtype: str) -> float:
    """FLOPs a second of a large square matmul, the best of three."""
    side = 8192 if device.type == "cuda" else 768
    factor = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        product = factor @ factor
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def available_bytes(device: torch.device, num_processes: int) -> int:
    """Memory for one process: what is free of the device's, or its share of the machine's that nothing uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = psutil.virtual_memory().available
    if _LIMIT.is_file() and _IN_USE.is_file() and _LIMIT.read_text().strip().isdecimal():
        free = min(free, int(_LIMIT.read_text()) - int(_IN_USE.read_text()))
    return free // num_processes
