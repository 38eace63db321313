"""Rules that the sources of Vision Transformers share.

Shapes: P prefix tokens, N patches, D hidden size.
"""

from __future__ import annotations

import torch

from hf_vit.conversion.rules import Rule, reshaped
from hf_vit.models.configuration_hf_vit import HfViTConfig

POSITIONS = "vit.embeddings.position_embedding"


def patch_kernel(config: HfViTConfig, theirs: str) -> Rule:
    """The kernel of the patches, theirs that of a convolution of shape (D, channels, height, width)."""
    shape = (config.num_channels, *config.patch_shape)
    return reshaped(
        "vit.embeddings.patch_embedding.projection.weight",
        theirs,
        lambda kernel: kernel.flatten(1),
        lambda kernel: kernel.unflatten(1, shape),
    )


def learned_positions(config: HfViTConfig, theirs: str) -> Rule:
    """A learnt table, theirs of shape (1, [P +] N, D)."""
    rows, columns = config.grid_size
    num_prefix = config.num_prefix_positions("learned")

    def from_theirs(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        num_patches = tensors[0].shape[1] - num_prefix
        if num_patches != rows * columns:
            raise ValueError(
                f"{theirs} must have {num_prefix} + {rows} * {columns} rows for this image and patch size, "
                f"got {tensors[0].shape[1]}"
            )
        prefix, grid = tensors[0][0].split([num_prefix, num_patches])
        grid = grid.unflatten(0, (rows, columns)).clone()
        return [grid, prefix.clone()] if num_prefix else [grid]

    def to_theirs(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        grid, *prefix = tensors
        return [torch.cat([*prefix, grid.flatten(0, 1)])[None]]

    names = (f"{POSITIONS}.grid", f"{POSITIONS}.prefix") if num_prefix else (f"{POSITIONS}.grid",)
    return Rule(names, (theirs,), from_theirs, to_theirs)


__all__ = ["POSITIONS", "learned_positions", "patch_kernel"]
