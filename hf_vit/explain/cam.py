"""What pytorch-grad-cam and Captum need to read a Vision Transformer: patches as a grid, logits as a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def reshape_transform(
    model: PreTrainedModel, image_size: tuple[int, int] | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The argument `reshape_transform` of pytorch-grad-cam, for layers of a model's body; Captum's attributions of
    such layers (batch, tokens, hidden_size) go through it likewise.

    A class token that alone is pooled leaves the other outputs of the last layer without gradients: take
    `model.vit.layers[-1].attention_norm` as the target layer, or `model.vit.layers[-1]` where patches are pooled.

    Args:
        model: an `HfViTModel` or a model with one inside.
        image_size: (height, width) in pixels; `config.image_size` when None.

    Returns:
        A function from tokens (batch, tokens, hidden_size) to patches (batch, hidden_size, rows, columns), which
        raises `ValueError` for fewer tokens than patches.
    """
    body: Any = model.base_model
    size = body.config.image_shape if image_size is None else image_size
    blank = torch.empty(1, body.config.num_channels, *size, device="meta")
    rows, columns = body.embeddings.patch_embedding.grid_size(blank)

    def transform(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.dim() != 3 or tokens.shape[1] < rows * columns:
            raise ValueError(f"tokens must have shape (batch, {rows * columns} or more, D), got {tuple(tokens.shape)}")
        patches = tokens[:, tokens.shape[1] - math.prod((rows, columns)) :]
        return patches.transpose(1, 2).unflatten(2, (rows, columns))

    return transform


class LogitsOf(nn.Module):
    """A model whose forward returns its logits (batch, classes) alone, as pytorch-grad-cam and Captum expect."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, classes)."""
        return self.model(pixel_values).logits


__all__ = ["LogitsOf", "reshape_transform"]
