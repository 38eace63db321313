"""Which samples a step that went wrong was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object


def suspects(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    """Sorted indices of the samples in those batches of all processes whose loss is not finite; of all batches when
    each loss is. Every process must call it.

    Args:
        batches: loss, a scalar, and sampler's keys (B, 3) of each batch of this process's step.
    """
    told = gather_object([(float(loss), keys[:, 1].tolist()) for loss, keys in batches])
    chosen = [indices for loss, indices in told if not math.isfinite(loss)] or [indices for _, indices in told]
    return sorted({index for indices in chosen for index in indices})
