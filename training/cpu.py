"""Threads and memory of a training on a CPU."""

from __future__ import annotations

import ctypes
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


def keep_freed_memory(accelerator: Accelerator) -> None:
    """Lets the C library keep what each step frees for the next one, where training runs on a CPU with glibc.

    It would hand the memory back to the system and fault every page of it in again: a fifth of the time of a small
    model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if accelerator.device.type == "cpu" and mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_trim_threshold, -1)
        mallopt(m_mmap_max, 0)
