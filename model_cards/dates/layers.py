"""The parts of a Transformer layer beside attention.

Shapes: B batch.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .cpu_linear import linear
from .cpu_operators import is_watched
from .cpu_paths import why_not_skip_dropped
from .strict_config import GATED_ACTIVATIONS


class DropPath(nn.Module):
    """Stochastic depth (1603.09382): in training, a sample's residual branch is zero with probability `drop_prob` and
    scaled by 1 / (1 - drop_prob) otherwise, so that its expectation is the branch itself.

    Args:
        drop_prob: in [0, 1).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0 or not self.training:
            return branch
        keep_prob = 1 - self.drop_prob
        kept = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(keep_prob)  # (B, 1, ...)
        return branch * kept.div_(keep_prob)

    def kept_samples(self, states: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """Indices of the samples that keep their branch, shape (kept,), and the branch's factor, where it pays not to
        compute the others'; None where `forward` is to be called on the whole branch.

        Args:
            states: what the branch begins with, shape (batch, tokens, hidden_size).
        """
        if self.drop_prob == 0 or not self.training or is_watched(self) or why_not_skip_dropped(states) is not None:
            return None
        keep_prob = 1 - self.drop_prob
        kept = states.new_empty(states.shape[0]).bernoulli_(keep_prob).nonzero().flatten()
        if len(kept) == 0:  # every process expects gradients of all parameters
            return kept.new_zeros(min(1, states.shape[0])), 0.0
        return kept, 1 / keep_prob

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3g}"


def drop_path_rates(drop_path_rate: float, num_layers: int) -> list[float]:
    """Rates that rise linearly from 0 in the first layer to `drop_path_rate` in the last."""
    return [drop_path_rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


class LayerScale(nn.Module):
    """Learnt scale of each channel of a residual branch (CaiT, 2103.17239).

    Args:
        hidden_size: number of channels.
        init_value: initial scale.
    """

    def __init__(self, hidden_size: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.scale = nn.Parameter(torch.full((hidden_size,), float(init_value)))

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * self.scale


def make_norm(config: Any, size: int | None = None) -> nn.Module:
    """Return the norm of `config.norm_type` over the last dimension, of `config.hidden_size` numbers unless told."""
    norm = nn.LayerNorm if config.norm_type == "layer_norm" else nn.RMSNorm
    return norm(config.hidden_size if size is None else size, eps=config.layer_norm_eps)


class MLP(nn.Module):
    """Two linear layers with an activation between: (..., hidden_size) -> (..., hidden_size).

    Args:
        hidden_size: width of the input and of the output.
        intermediate_size: width between the two layers (after gating, if the activation is a gated one).
        hidden_act: a name of `transformers.activations.ACT2FN` or of `GATED_ACTIVATIONS`.
        dropout: rate between the two layers, in [0, 1).
        bias: whether the layers have biases.
        norm: applied between the two layers, after the activation.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        dropout: float = 0.0,
        bias: bool = True,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.is_gated = hidden_act in GATED_ACTIVATIONS
        self.fc1 = nn.Linear(hidden_size, intermediate_size * (2 if self.is_gated else 1), bias=bias)
        self.activation = ACT2FN[GATED_ACTIVATIONS.get(hidden_act, hidden_act)]
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.Identity() if norm is None else norm
        self.fc2 = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(..., hidden_size) -> (..., hidden_size), added to the residual of this shape if there is one."""
        if self.is_gated:
            hidden_states = self.activate(linear(self.fc1, hidden_states))
        else:
            hidden_states = linear(self.fc1, hidden_states, self.activation)
        return linear(self.fc2, self.norm(self.dropout(hidden_states)), residual=residual)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states between the two layers: (..., width of the first's output) -> (..., intermediate_size)."""
        if not self.is_gated:
            return self.activation(hidden_states)
        gate, hidden_states = hidden_states.chunk(2, dim=-1)
        return self.activation(gate) * hidden_states


__all__ = ["MLP", "DropPath", "LayerScale", "drop_path_rates", "make_norm"]
