"""Texts that a model generates in an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def as_loaded(model: Any) -> Iterator[None]:
    """The model as its users load it: without the mixed precision that Accelerate puts around its `forward`, which
    would change the texts, and keep `generate` from its fast path; and with packed weights, as in a pipeline."""
    around = vars(model).pop("forward", None)
    if hasattr(model, "pack_weights"):
        model.pack_weights()
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if around is not None:
            model.forward = around
