"""Threads of a training on a CPU."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator


def use_all_cores(accelerator: Accelerator, num_workers: int) -> None:
    """Gives the model the cores that loader workers leave, where `accelerate launch` left it a single thread.

    That is what it does on a machine without GPUs unless it is told otherwise.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - num_workers))
