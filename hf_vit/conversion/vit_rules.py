"""Rules that the sources of Vision Transformers share.

Shapes: P prefix tokens, N patches, D hidden size.
"""

from __future__ import annotations

import torch

from hf_vit.conversion.rules import Rule, fused, reshaped, same
from hf_vit.models.configuration_hf_vit import HfViTConfig

POSITIONS = "vit.embeddings.position_embedding"
LAYER = "vit.layers.*"


def patch_kernel(config: HfViTConfig, theirs: str) -> Rule:
    """The kernel of the patches, theirs that of a convolution of shape (D, channels, height, width)."""
    shape = (config.num_channels, *config.patch_shape)
    return reshaped(
        "vit.embeddings.patch_embedding.projection.weight",
        theirs,
        lambda kernel: kernel.flatten(1),
        lambda kernel: kernel.unflatten(1, shape),
    )


def channels_last_kernel(config: HfViTConfig, theirs: str) -> Rule:
    """The kernel of the patches, theirs that of a linear layer on the pixels row by row, their channels last, of shape
    (D, height * width * channels)."""
    height, width = config.patch_shape
    return reshaped(
        "vit.embeddings.patch_embedding.projection.weight",
        theirs,
        lambda kernel: kernel.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2).flatten(1),
        lambda kernel: kernel.unflatten(1, (-1, height, width)).permute(0, 2, 3, 1).flatten(1),
    )


def learned_positions(config: HfViTConfig, theirs: str, batched: bool = True) -> Rule:
    """A learnt table, theirs of shape (1, [P +] N, D), or unless it is `batched` ([P +] N, D)."""
    rows, columns = config.grid_size
    num_prefix = config.num_prefix_positions("learned")

    def from_theirs(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        table = tensors[0][0] if batched else tensors[0]
        num_patches = len(table) - num_prefix
        if num_patches != rows * columns:
            raise ValueError(
                f"{theirs} must have {num_prefix} + {rows} * {columns} rows for this image and patch size, "
                f"got {len(table)}"
            )
        prefix, grid = table.split([num_prefix, num_patches])
        grid = grid.unflatten(0, (rows, columns)).clone()
        return [grid, prefix.clone()] if num_prefix else [grid]

    def to_theirs(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        grid, *prefix = tensors
        table = torch.cat([*prefix, grid.flatten(0, 1)])
        return [table[None] if batched else table]

    names = (f"{POSITIONS}.grid", f"{POSITIONS}.prefix") if num_prefix else (f"{POSITIONS}.grid",)
    return Rule(names, (theirs,), from_theirs, to_theirs)


def relative_bias(config: HfViTConfig, ours: str, theirs: str) -> Rule:
    """A table of relative positions, theirs BEiT's of shape (offsets + 3, heads) whose last rows are those from the
    class token to patches, from patches to it, and from it to itself."""
    rows, columns = config.grid_size
    shape = (2 * rows - 1, 2 * columns - 1)
    return Rule(
        (f"{ours}.grid", f"{ours}.prefix"),
        (theirs,),
        lambda tensors: [tensors[0][:-3].unflatten(0, shape).clone(), tensors[0][-3:].clone()],
        lambda tensors: [torch.cat([tensors[0].flatten(0, 1), tensors[1]])],
    )


def projections(config: HfViTConfig, query: str, key: str, value: str) -> list[Rule]:
    """Queries, keys and values, theirs linear layers of these names."""
    attention, names = f"{LAYER}.attention", (query, key, value)
    rules = [fused(f"{attention}.qkv_proj.weight", *(f"{name}.weight" for name in names))]
    if config.key_bias:
        return [*rules, fused(f"{attention}.qkv_proj.bias", *(f"{name}.bias" for name in names))]
    return [
        *rules,
        same(f"{attention}.query_bias", f"{query}.bias"),
        same(f"{attention}.value_bias", f"{value}.bias"),
    ]


__all__ = [
    "LAYER",
    "POSITIONS",
    "channels_last_kernel",
    "learned_positions",
    "patch_kernel",
    "projections",
    "relative_bias",
]
