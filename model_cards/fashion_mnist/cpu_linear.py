"""Linear layers on a CPU: the way each takes, and weights that are packed while nothing but inference uses them."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cpu_operators import (
    is_plain_eager,
    is_untouched_linear,
    onednn_activated_linear,
    onednn_linear,
    onednn_linear_add,
    pack_weight,
    untouched_activation,
)
from .cpu_paths import why_not_onednn_linear, why_not_packed


class _OneDNNLinear(torch.autograd.Function):
    """states @ weight.T + bias and its gradients by oneDNN; gradients that are differentiated again, by torch."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        ctx.save_for_backward(states, weight)
        return onednn_linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        states, weight = ctx.saved_tensors
        multiply = nn.functional.linear if torch.is_grad_enabled() else onednn_linear
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        grad_states = multiply(grad_output, weight.t()) if needs_states else None
        grad_weight = multiply(rows.t(), states.reshape(-1, states.shape[-1]).t()) if needs_weight else None
        return grad_states, grad_weight, rows.sum(0) if needs_bias else None


def linear(
    layer: Any,
    states: torch.Tensor,
    activation: nn.Module | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`residual + activation(layer(states))`, by the fastest way where the layer is an exact `nn.Linear` that nothing
    watches or changes: other layers, and those with hooks, are called as the modules they are. In inference, GELU or
    ReLU or else the sum is part of the matmul.

    (..., in_features) -> (..., out_features)

    Args:
        activation: a module that keeps the shape.
        residual: shape (..., out_features).
    """
    multiply = _way_of(layer, states)
    if multiply is None:
        output, rest = layer(states), activation
    elif torch.is_grad_enabled():
        output, rest = _OneDNNLinear.apply(states, layer.weight, layer.bias), activation
    elif activation is not None:
        name = untouched_activation(activation)
        output, rest = multiply(name), activation if name is None else None
    elif residual is not None and _may_add(states, residual, layer.weight):
        return multiply(None, residual)
    else:
        output, rest = multiply(None), None
    output = output if rest is None else rest(output)
    return output if residual is None else residual + output


def _way_of(layer: Any, states: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """The layer's matmul by oneDNN as a function of an activation's name and a residual, or None."""
    if torch.compiler.is_compiling() or not is_untouched_linear(layer):
        return None
    weight, bias = layer.weight, layer.bias
    if type(weight) is PackedParameter:
        if not _may_multiply(states, weight, bias):
            return None
        weight = weight._packed
    elif why_not_onednn_linear(states, weight) is not None:
        return None

    def multiply(activation: str | None, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is not None:
            return onednn_linear_add(states, weight, bias, residual)
        operator = onednn_linear if activation is None else onednn_activated_linear[activation]
        return operator(states, weight, bias)

    return multiply


def _may_add(states: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the residual is an ordinary tensor of just the output's shape and type."""
    return (
        is_plain_eager(residual)
        and residual.dtype == states.dtype
        and residual.device == states.device
        and residual.shape == (*states.shape[:-1], weight.shape[0])
    )


# What may be asked of a packed weight without unpacking it: nothing that reads or changes a number.
_METADATA = {
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("device", "dtype", "is_leaf", "layout", "ndim", "requires_grad", "shape")
    ),
    torch.Tensor.dim,
    torch.Tensor.is_complex,
    torch.Tensor.is_floating_point,
    torch.Tensor.numel,
    torch.Tensor.size,
}
_LOCK = threading.RLock()


class PackedParameter(nn.Parameter):
    """The weight of a linear layer as oneDNN lays it out, and in no other form: what it was before is given up.

    Linear layers multiply with it where no gradient is wanted. Whatever else touches it, in any way (an optimizer, a
    change through `data`, `state_dict`, a copy, `half`, training), finds an ordinary parameter, the same object as
    before: it unpacks itself first. So there are never two weights of which one could be the old one. The trick of
    changing its class is that of torch's own `UninitializedParameter`.

    A parameter that embeds tokens too, as a tied output layer's does, keeps its rows beside, under the same lock and
    key.
    """

    _packed: Any  # the weight as oneDNN lays it out
    _rows: torch.Tensor | None  # the rows, of a weight that embeds tokens too

    @staticmethod
    def pack(parameter: Any, embeds: bool) -> None:
        """Make an ordinary parameter a packed one."""
        with _LOCK, torch.inference_mode(False), torch.no_grad():
            weight = parameter.detach()
            parameter._packed, parameter._rows = pack_weight[weight.dtype](weight), weight.clone() if embeds else None
            if not parameter._packed.is_mkldnn:
                del parameter._packed, parameter._rows
                return
            parameter.__class__ = PackedParameter
            # Of the right shape, but without memory of its own: cannot be written to, and read it is no number.
            nothing = torch.full((1, 1), torch.nan, dtype=weight.dtype).expand(weight.shape)
            set_data = getattr(torch.Tensor, "data").__set__  # noqa: B009 - to the type checker a tensor
            nn.Parameter.__torch_function__(set_data, (PackedParameter,), (parameter, nothing), {})

    def unpack(self) -> None:
        """Make it an ordinary parameter again."""
        with _LOCK, torch.inference_mode(False), torch.no_grad():
            if type(self) is not PackedParameter:  # another thread was first
                return
            packed, rows = vars(self).pop("_packed"), vars(self).pop("_rows")
            itself: Any = self
            itself.__class__ = nn.Parameter
            self.data = packed.to_dense() if rows is None else rows

    def matmul_of(self, bias: torch.Tensor | None) -> Any:
        """(rows, in_features) -> (rows, out_features), as long as no gradient is wanted."""
        packed = self._packed
        return lambda states: onednn_linear(states, packed, bias)

    @classmethod
    @torch.compiler.disable  # which would look into a weight while it changes
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        if func is nn.functional.linear and _may_multiply(*args, **kwargs):
            return _multiply(*args, **kwargs)
        if func is nn.functional.embedding and _may_embed(*args, **kwargs):
            return func(args[0], args[1]._rows, *args[2:], **kwargs)
        if torch.jit.is_tracing():
            raise ValueError("the model's weights must not be packed to be traced: call unpack_weights() before")
        _unpack_all((args, kwargs))
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        self.unpack()
        return self.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.unpack()
        return self.__reduce_ex__(protocol)


def _may_multiply(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    return (
        type(weight) is PackedParameter
        and isinstance(input, torch.Tensor)
        and not torch.is_grad_enabled()
        and input.dtype == weight._packed.dtype
        and input.numel() > 0
        and input.shape[-1] == weight._packed.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and is_plain_eager(input, *(() if bias is None else (bias,)))
    )


def _multiply(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    return weight.matmul_of(bias)(input)


def _may_embed(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    *args: Any,
    **kwargs: Any,
) -> bool:
    return (
        type(weight) is PackedParameter
        and weight._rows is not None
        and max_norm is None  # which changes the rows
        and not torch.is_grad_enabled()
        and is_plain_eager(input_ids)
    )


def _unpack_all(arguments: Any) -> None:
    if type(arguments) is PackedParameter:
        arguments.unpack()
    elif isinstance(arguments, (tuple, list)):
        for argument in arguments:
            _unpack_all(argument)
    elif isinstance(arguments, dict):
        _unpack_all(list(arguments.values()))


def pack_weights(model: nn.Module) -> None:
    """Pack the weights of a model's linear layers where that can be, in place; see [`PackedParameter`]."""
    for parameter, reason in weights_to_pack(model):
        if reason is None:
            PackedParameter.pack(parameter, embeds=any(_embeds(module, parameter) for module in model.modules()))


def unpack_weights(model: nn.Module) -> None:
    """Make the packed weights of a model ordinary ones again."""
    _unpack_all(list(model.parameters()))


def weights_to_pack(model: nn.Module) -> list[tuple[nn.Parameter, str | None]]:
    """The weights of a model's linear layers, each with the reason why it is not to be packed, or None."""
    owners: dict[int, tuple[nn.Parameter, list[nn.Module]]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), (parameter, []))[1].append(module)
    return [
        (parameter, why_not_packed(parameter) or _why_not_of_all(modules))
        for parameter, modules in owners.values()
        if any(isinstance(module, nn.Linear) and module.weight is parameter for module in modules)
    ]


def _why_not_of_all(modules: list[nn.Module]) -> str | None:
    for module in modules:
        if type(module) is not nn.Embedding and not is_untouched_linear(module):
            return f"a {type(module).__name__} that is changed or watched has it"
    return None


def _embeds(module: nn.Module, parameter: nn.Parameter) -> bool:
    return type(module) is nn.Embedding and module.weight is parameter


def direct(layer: Any) -> Any:
    """The layer as a function of few rows, (rows, in_features) -> (rows, out_features), while nothing is trained and
    nothing watches: what is called many times over is looked at once."""
    if not is_untouched_linear(layer):
        return layer
    weight, bias = layer.weight, layer.bias
    if type(weight) is PackedParameter:
        return weight.matmul_of(bias)
    if why_not_onednn_linear(weight, weight) is not None:
        return layer
    return lambda states: onednn_linear(states, weight, bias)


__all__ = ["PackedParameter", "direct", "linear", "pack_weights", "unpack_weights", "weights_to_pack"]
