"""From an image to the tokens of the Vision Transformer.

Shapes: B batch, P prefix tokens, N patches, D hidden size.
"""

from typing import Any

import torch
from torch import nn

from .layers import make_norm
from .patch_embedding import PatchEmbedding
from .position_encoding import ABSOLUTE_POSITIONS


class HfViTEmbeddings(nn.Module):
    """(batch, channels, height, width) -> (batch, prefix + rows * columns, hidden_size): patches, absolute positions,
    prefix tokens, norm.

    Raises:
        ValueError: if the images do not fit the model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.has_prefix_positions = config.num_prefix_positions(config.absolute_position) > 0
        self.registers_first = config.registers_first
        self.class_tokens_enter_later = config.num_class_layers > 0
        self.patch_embedding = PatchEmbedding(config)
        self.class_token = self._token(config, int(config.use_class_token))
        self.distillation_token = self._token(config, int(config.use_distillation_token))
        self.register_tokens = self._token(config, config.num_register_tokens)
        position = ABSOLUTE_POSITIONS.get(config.absolute_position)
        self.position_embedding = position(config) if position else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()

    @staticmethod
    def _token(config: Any, count: int) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(1, count, config.hidden_size)) if count else None

    def prefix_tokens(self) -> list[torch.Tensor]:
        """Class, distillation and register tokens that exist and go through the layers, in their order in the
        sequence, each (1, count, hidden_size)."""
        tokens = [self.class_token, self.distillation_token, self.register_tokens]
        if self.class_tokens_enter_later:
            tokens = [self.register_tokens]
        elif self.registers_first:
            tokens = [self.register_tokens, self.class_token, self.distillation_token]
        return [token for token in tokens if token is not None]

    def class_tokens(self) -> torch.Tensor:
        """Class and distillation token, (1, count, hidden_size)."""
        tokens = (self.class_token, self.distillation_token)
        return torch.cat([token for token in tokens if token is not None], dim=1)

    def forward(
        self, pixel_values: torch.Tensor, grid_size: tuple[int, int], mixtoken_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values, grid_size)  # (B, N, D)
        if mixtoken_mask is not None:
            if mixtoken_mask.shape != patches.shape[1:2] or mixtoken_mask.dtype != torch.bool:
                raise ValueError(
                    f"mixtoken_mask must be bool of shape {tuple(patches.shape[1:2])}, got {mixtoken_mask.dtype} of "
                    f"shape {tuple(mixtoken_mask.shape)}"
                )
            patches = torch.where(mixtoken_mask[:, None], patches.roll(1, dims=0), patches)
        positions = self.position_embedding(grid_size) if self.position_embedding else None
        if positions is not None and not self.has_prefix_positions:
            patches = patches + positions
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        tokens = torch.cat([*prefix, patches], dim=1) if prefix else patches  # (B, P + N, D)
        if positions is not None and self.has_prefix_positions:
            tokens = tokens + positions
        return self.norm(self.dropout(tokens))


__all__ = ["HfViTEmbeddings"]
