"""Linear maps of 8 bits on a CPU: torch's quantized operators, and the same in public ones.

Shapes: as of `nn.Linear`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cpu_operators import Guarded, example_numbers


def _int8_scale(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(1).clamp(min=1e-12) / 127  # (out_features,)


def _public_int8_weight(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple:
    scale = _int8_scale(weight)
    return (weight / scale[:, None]).round().to(torch.int8), scale, bias


def _find_int8_weight() -> Callable:
    quantize, prepack = torch.quantize_per_channel, torch.ops.quantized.linear_prepack

    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        scale = _int8_scale(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what replaces quantized tensors, nothing is as fast yet
            return prepack(quantize(weight, scale, torch.zeros_like(scale).long(), 0, torch.qint8), bias)

    return pack


def _public_int8_linear(states: torch.Tensor, weight: Any, reduce_range: bool) -> torch.Tensor:
    if not isinstance(weight, tuple):
        packed, bias = torch.ops.quantized.linear_unpack(weight)
        weight = packed.int_repr(), packed.q_per_channel_scales().float(), bias
    rounded, scale, bias = weight
    levels = 127 if reduce_range else 255
    low, high = (float(bound) for bound in states.aminmax()) if states.numel() else (0.0, 0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    step = torch.tensor((high - low) / levels if high > low else 0.1)
    zero = round(-low / float(step))
    inputs = (states * (1 / step)).round().add(zero).clamp(0, levels).sub(zero)
    sums = nn.functional.linear(inputs.double(), rounded.double()).float()  # of whole numbers: exact
    output = sums * (scale * step)
    return output if bias is None else output + bias


def _find_int8_linear() -> Callable:
    multiply = torch.ops.quantized.linear_dynamic.default
    return getattr(multiply, "_op", multiply)  # Python's wrapper looks through the arguments at every call


def _multiplied_int8(weight: torch.Tensor) -> torch.Tensor:
    multiply = _public_int8_linear if isinstance(weight, tuple) else _find_int8_linear()
    return multiply(example_numbers(3, 17), weight, True)


# (weight, bias), both fp32, of shape (out_features, in_features) and (out_features,) or None -> the two as
# `int8_linear` takes them, the weight rounded to 8 bits with a scale for each of its rows.
int8_weight = Guarded(
    "torch.quantize_per_channel, torch.ops.quantized.linear_prepack or torch.ops.quantized.linear_dynamic",
    _find_int8_weight,
    _public_int8_weight,
    lambda: (example_numbers(19, 17), example_numbers(19)),
    _multiplied_int8,
)
_int8_linear = Guarded("torch.ops.quantized.linear_dynamic", _find_int8_linear, _public_int8_linear)


def int8_linear(states: torch.Tensor, weight: torch.Tensor, reduce_range: bool) -> torch.Tensor:
    """Linear map of inputs that are rounded to 8 bits between the smallest and the largest of all, zero among them.

    (rows, in_features) in fp32 -> (rows, out_features)

    Args:
        weight: of `int8_weight`.
        reduce_range: round the inputs to 7 bits.
    """
    multiply = _public_int8_linear if isinstance(weight, tuple) else _int8_linear
    return multiply(states, weight, reduce_range)


__all__ = ["int8_linear", "int8_weight"]
