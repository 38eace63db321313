"""Predictions of a whole split, each sample once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator


@torch.inference_mode()
def gather_predictions(
    accelerator: Accelerator,
    batches: Iterable[Any],
    step: Callable[[Any], dict[str, torch.Tensor]],
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """What `step` gives for every sample of a prepared loader, in order, on every process.

    Args:
        step: a batch to tensors with first dimension B; runs under the accelerator's precision.
        after_batch: called after each, on every process; what it raises ends the evaluation.
    """
    parts: list[dict[str, torch.Tensor]] = []
    for batch in batches:
        with accelerator.autocast():
            result = step(batch)
        parts.append(accelerator.gather_for_metrics(result))
        after_batch()
    return {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]}
