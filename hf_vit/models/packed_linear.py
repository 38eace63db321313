"""Linear layers for decoding, where few rows meet a large matrix: weights laid out for oneDNN, or rounded to int8."""

import warnings
import weakref
from collections.abc import Callable

import torch
from torch import nn

from .linear import Linear

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")

# Layer -> what its weight was when it was packed, and the packed weight.
_PACKED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def packed(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes the layer's output for a few rows fastest: the layer itself, unless it is an `Int8Linear`, which
    is called without a module's ceremony, or a plain `Linear` whose weight oneDNN can lay out in its own way. That
    copy, as large as the weight, is made once and again when the weight has changed, and kept until the layer goes or
    is trained.

    Args:
        layer: maps (rows, in_features) to (rows, out_features).
    """
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return layer
    if type(layer) is Int8Linear:
        return layer.as_function()
    if not (_HAS_ONEDNN and type(layer) is Linear and _can_pack(layer.weight)):
        return layer
    weight, bias, multiply = _packed_weight(layer), layer.bias, torch.ops.mkldnn._linear_pointwise.default
    return lambda states: multiply(states, weight, bias, "none", [], "")


def _can_pack(weight: torch.Tensor) -> bool:
    # Other types of weights (quantized ones, for instance) have products of their own.
    if type(weight) is not nn.Parameter or weight.device.type != "cpu" or weight.is_inference() or weight.numel() == 0:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def forget_packed(model: nn.Module):
    """Drop the packed copies of a model's layers."""
    for layer in model.modules():
        _PACKED.pop(layer, None)


def _packed_weight(layer: Linear) -> torch.Tensor:
    weight = layer.weight.detach()
    # Changes through `.data`, and those of fused optimizers, leave the version as it is: a part of every row and every
    # column tells of them.
    parts = (weight[:, 0], weight[:: max(1, len(weight) // 16)])
    sums = [float(part.sum(dtype=torch.float64)) for part in parts]
    state = (weight.data_ptr(), layer.weight._version, weight.dtype, *sums)
    if layer not in _PACKED or _PACKED[layer][0] != state:
        _PACKED[layer] = state, torch.ops.mkldnn._reorder_linear_weight(weight)
    return _PACKED[layer][1]


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
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127  # (out_features,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what replaces quantized tensors, nothing is as fast yet
            weight = torch.quantize_per_channel(weight, scale, torch.zeros_like(scale).long(), 0, torch.qint8)
            bias = None if layer.bias is None else layer.bias.detach().float()
            self.packed_weight = torch.ops.quantized.linear_prepack(weight, bias)
        # Without the instructions for it, products of 8 bits overflow their 16-bit sums.
        self.reduce_range = not getattr(torch.cpu, "_is_vnni_supported", bool)()

    def as_function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer as a function of its input, (rows, in_features) -> (rows, out_features)."""
        multiply = torch.ops.quantized.linear_dynamic.default
        multiply = getattr(multiply, "_op", multiply)  # Python's wrapper looks through the arguments at every call
        weight, reduce_range = self.packed_weight, self.reduce_range
        return lambda states: multiply(states.float(), weight, reduce_range).to(states.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.as_function()(input)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *args, **kwargs):
        refuse_quantized(self, "saved")


def refuse_quantized(model: nn.Module, verb: str):
    """Raise a `ValueError` if a layer is an [`Int8Linear`].

    Args:
        verb: what was to be done to the model.
    """
    if any(isinstance(layer, Int8Linear) for layer in model.modules()):
        raise ValueError(f"a model quantized to int8 cannot be {verb}: take the model it was made from")


def quantize_linear_layers(model: nn.Module):
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
        setattr(parent, name, Int8Linear(layer))


__all__ = ["Int8Linear", "forget_packed", "packed", "quantize_linear_layers", "refuse_quantized"]
