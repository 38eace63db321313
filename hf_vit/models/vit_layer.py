"""The layers of the Vision Transformer."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import SelfAttention
from .layers import MLP, DropPath, LayerScale


class HfViTLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer: attention and MLP, each with layer scale, dropout and drop path on its branch.

    (batch, tokens, hidden_size) -> the same shape
    """

    def __init__(self, config, drop_path_rate: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.layer_scale1, self.layer_scale2 = self._layer_scale(config), self._layer_scale(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    @staticmethod
    def _layer_scale(config) -> nn.Module:
        value = config.layer_scale_init_value
        return nn.Identity() if value is None else LayerScale(config.hidden_size, value)

    def forward(
        self, hidden_states: torch.Tensor, position_bias: torch.Tensor | None = None, **attention_kwargs
    ) -> torch.Tensor:
        branch, _ = self.attention(self.attention_norm(hidden_states), position_bias=position_bias, **attention_kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(self.layer_scale1(branch)))
        branch = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + self.drop_path(self.dropout(self.layer_scale2(branch)))


__all__ = ["HfViTLayer"]
