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


def keep_freed_memory() -> None:
    """Lets the C library keep what each step frees for the next one, where that is glibc; before the first tensor.

    It would hand the memory back to the system and fault every page of it in again: a fifth of the time of a small
    model's step. Blocks of 32 MiB and more do go back, for of batches of changing lengths they would leave gaps that
    grow to many times what is in use; large pages make them cheap to fault in.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
        mallopt(m_trim_threshold, -1)
        mallopt(m_top_pad, 64 << 20)
        mallopt(m_mmap_threshold, 32 << 20)
