"""Models for images of another size than they were trained for, from any checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def change_image_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Lays a model's learnt positions out for images of `size` (height, width), in place.

    Knows models with transformers' `interpolate_pos_encoding` (ViT, DeiT, ...), timm's `set_input_size` and those
    that take any size. Ours resample while they load.

    Raises:
        ValueError: the model cannot take images of this size.
    """
    timm_model: Any = getattr(model, "timm_model", None)
    if hasattr(timm_model, "set_input_size"):
        timm_model.set_input_size(img_size=size)
        config: Any = model.config
        config.model_args = {**(config.model_args or {}), "img_size": list(size)}
    mode = model.training
    try:
        for module in model.modules():
            # Swin and BEiT may have none: their relative positions serve any grid.
            positions = getattr(module, "position_embeddings", None)
            if hasattr(module, "interpolate_pos_encoding") and positions is not None:
                _interpolate(model, module, size)
        model.eval()(pixel_values=torch.zeros(1, getattr(model.config, "num_channels", 3), *size))
    except Exception as error:  # whatever a model does with a size that it cannot take
        raise ValueError(
            f"--image_size {size[0]} {size[1]}: {type(model).__name__} cannot take it: {error}"
        ) from error
    finally:
        model.train(mode)


def _interpolate(model: Any, embeddings: Any, size: tuple[int, int]) -> None:
    patches = embeddings.patch_embeddings
    patch = patches.patch_size if isinstance(patches.patch_size, (tuple, list)) else (patches.patch_size,) * 2
    grid = (size[0] // patch[0], size[1] // patch[1])
    _, num_positions, width = embeddings.position_embeddings.shape
    num_prefix = num_positions - patches.num_patches
    tokens = embeddings.position_embeddings.new_zeros(1, num_prefix + grid[0] * grid[1], width)
    positions = embeddings.interpolate_pos_encoding(tokens, *size)
    embeddings.position_embeddings = nn.Parameter(positions.clone())
    patches.num_patches = grid[0] * grid[1]
    for module in (embeddings, patches):
        if hasattr(module, "image_size"):
            module.image_size = size
    model.config.image_size = size[0] if size[0] == size[1] else list(size)
