"""Linear layers for inference on a CPU whose weights are rounded to 8 bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cpu_int8_operators import int8_linear, int8_weight
from .cpu_processor import processor_flags


class Int8Linear(nn.Module):
    """A linear layer for inference on a CPU with weights of 8 bits, scaled by output channel, and inputs rounded to 8
    bits as they come, scaled by the largest and the smallest of all rows.

    (..., in_features) -> (..., out_features)

    Args:
        layer: a linear layer, whose weight is not kept.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed_weight = int8_weight(layer.weight.detach().float(), bias)
        # Without the instructions for it, products of 8 bits overflow their 16-bit sums.
        self.reduce_range = "avx512_vnni" not in processor_flags()

    def as_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer as a function of its input, (rows, in_features) -> (rows, out_features)."""
        weight, reduce_range = self.packed_weight, self.reduce_range
        return lambda states: int8_linear(states.float(), weight, reduce_range).to(states.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.as_function()(input)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        refuse_quantized(self, "saved")


def refuse_quantized(model: nn.Module, verb: str) -> None:
    """Raise a `ValueError` if a layer is an [`Int8Linear`].

    Args:
        verb: what was to be done to the model.
    """
    if any(isinstance(layer, Int8Linear) for layer in model.modules()):
        raise ValueError(f"a model quantized to int8 cannot be {verb}: take the model it was made from")


def quantize_linear_layers(model: nn.Module) -> None:
    """Put an [`Int8Linear`] in the place of every linear layer.

    Raises:
        ValueError: if the model is not in eval mode, not on a CPU, or not in float32.
    """
    if model.training:
        raise ValueError("the model must be in eval mode to be quantized to int8, got training mode: call eval()")
    layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    for _, _, layer in layers:
        if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
            raise ValueError(
                f"the model must be in float32 on a CPU to be quantized to int8, "
                f"got {layer.weight.dtype} on {layer.weight.device}"
            )
    for parent, name, layer in layers:
        setattr(parent, name, Int8Linear(layer).train(layer.training))


__all__ = ["Int8Linear", "quantize_linear_layers", "refuse_quantized"]
