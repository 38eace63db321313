"""Teachers' logits of views that never change, computed once and kept on disk.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hf_vit.files import digest, write_atomically


def digest_of(teachers: nn.Module, facts: dict[str, Any]) -> str:
    """A digest of models and of what else decides their answers."""

    def parts() -> Iterator[bytes]:
        yield json.dumps(facts, sort_keys=True, default=str).encode()
        for name, tensor in sorted({**teachers.state_dict(), **dict(teachers.named_buffers())}.items()):
            yield name.encode()
            yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

    return digest(parts())[:24]


@torch.inference_mode()
def cached_logits(
    teachers: nn.Module, views: Dataset, folder: Path, facts: dict[str, Any], loader_options: dict[str, Any]
) -> torch.Tensor:
    """The teachers' logits of every view, (views, C) fp32, from `folder` or computed and left there.

    Args:
        teachers: (B, 3, height, width) in 0..255 to logits; on the device it is to run on.
        views: items with `pixel_values`; the same ones whenever `facts` are.
        facts: what decides the views: the data's fingerprint, the processor.
        loader_options: of the `DataLoader` that goes through the views.
    """
    path = folder / f"{digest_of(teachers, facts)}.safetensors"
    if path.is_file():
        return load_file(path)["logits"]
    device = next(teachers.buffers()).device
    batches = DataLoader(views, **loader_options, generator=torch.Generator())
    logits = torch.cat([teachers(batch["pixel_values"].to(device).float()).cpu() for batch in batches])
    write_atomically(path, save({"logits": logits.contiguous()}))
    return logits
