"""The private names of torch that this package uses, all behind one guard.

Each is looked up when it is first used and compared with the public way on a small example. A name that is missing,
takes other arguments, gives another result or fails is given up for the rest of the process, with one warning, and the
public way takes its place. `HF_VIT_CPU_PATHS=plain` in the environment takes the public ways from the start.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

_SWITCH = "HF_VIT_CPU_PATHS"
_MODES = ("auto", "plain")
_PLAIN_TYPES = (torch.Tensor, nn.Parameter)


class _Unavailable(Exception):
    """Something that this machine lacks, which is nobody's fault."""


def _read_mode() -> str:
    mode = os.environ.get(_SWITCH, "auto")
    if mode not in _MODES:
        raise ValueError(f"{_SWITCH} must be one of {', '.join(_MODES)}, got {mode!r}")
    return mode


class Guarded:
    """A function made of private names of torch, or, where it cannot be had, the public one with the same result.

    Args:
        names: the private names, as a warning calls them.
        find: looks them up and returns the function made of them.
        public: takes the same arguments.
        example: makes arguments for which the two must agree; without it they are not compared.
        result: makes tensors that can be compared of what the functions return.
    """

    mode = _read_mode()
    instances: "list[Guarded]" = []  # noqa: RUF012
    warned: "set[str]" = set()  # noqa: RUF012

    def __init__(
        self, names: str, find: Callable, public: Callable, example: Callable | None = None, result: Any = None
    ):
        self.names, self.find, self.public, self.example = names, find, public, example
        self.result = result or (lambda value: value)
        self.reset()
        self.instances.append(self)

    def reset(self) -> None:
        """Look the private names up again at the next call."""
        self._private: Callable | None = None
        self._failure: str | None = None
        self.warned.discard(self.names)

    def why_not(self) -> str | None:
        """The reason why the public way is taken, or None."""
        if Guarded.mode == "plain":
            return f"{_SWITCH}=plain"
        if self._private is None and self._failure is None:
            try:
                self._private = self._find_and_compare()
            except Exception as error:  # of the private names: the example is ours
                self._give_up(error)
        return self._failure

    def __call__(self, *args: Any) -> Any:
        if (self._private is None or Guarded.mode == "plain") and self.why_not() is not None:
            return self.public(*args)
        private: Any = self._private
        try:
            return private(*args)
        except Exception as error:
            if _is_out_of_memory(error):
                raise
            result = self.public(*args)  # raises what the caller's arguments deserve
            self._give_up(error)
            return result

    def _find_and_compare(self) -> Callable:
        private = self.find()
        if self.example is not None:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                got, expected = (self.result(function(*self.example())) for function in (private, self.public))
            torch.testing.assert_close(got, expected)
        return private

    def _give_up(self, error: Exception) -> None:
        self._private = None
        if isinstance(error, _Unavailable):
            self._failure = str(error)
            return
        self._failure = f"{self.names} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        if self.names not in self.warned:
            self.warned.add(self.names)
            logger.warning(f"{self._failure} with torch {torch.__version__}: the public way is taken, perhaps slower")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def example_numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers in [-1, 1], some of each sign, that no state of a random generator changes."""
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float32, device="cpu").mul_(2.4).sin_().view(shape).to(dtype)


# --- what is watched or changed by others ----------------------------------------------------------------------------


def _find_modes() -> Callable:
    count_dispatch_modes, count_function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
    transform_level, forward_ad = torch._C._functorch.maybe_current_level, torch.autograd.forward_ad
    return lambda: (
        count_dispatch_modes() == 0
        and count_function_modes() == 0
        and transform_level() is None
        and forward_ad._current_level < 0
    )


_runs_no_mode = Guarded(
    "torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack, torch._C._functorch.maybe_current_level "
    "or torch.autograd.forward_ad._current_level",
    _find_modes,
    lambda: False,
)


def is_plain_eager(*tensors: torch.Tensor) -> bool:
    """Whether these are ordinary tensors, computed at once: nothing traces, compiles, transforms, fakes or counts the
    operators, which should then be torch's own."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES:
            return False
    return not torch.compiler.is_compiling() and not torch.jit.is_tracing() and _runs_no_mode()


def _find_hooks() -> Callable:
    forward, forward_pre, backward, backward_pre = of_all_modules = [
        getattr(nn.modules.module, f"_global_{kind}_hooks")
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    ]

    def hooks(module: nn.Module) -> list:
        own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        if not (forward or forward_pre or backward or backward_pre or own[0] or own[1] or own[2] or own[3]):
            return []  # asked at every call of a layer: a loop would be felt
        return [hook for kind in (*of_all_modules, *own) for hook in kind.values()]

    return hooks


# What cannot be seen counts as watched.
hooks_of = Guarded("the hooks of torch.nn.Module", _find_hooks, lambda module: [None])

_LINEAR_FORWARD, _LINEAR = nn.Linear.forward, nn.functional.linear
_ACTIVATIONS = {type(ACT2FN[name]): (name, type(ACT2FN[name]).forward) for name in ("gelu", "relu")}
_GELU = nn.functional.gelu


def is_untouched_linear(layer: nn.Module) -> bool:
    """Whether calling the layer does no more than `torch.nn.functional.linear` with its weight and bias: it is an
    exact `nn.Linear`, no hook sees its calls, and nothing was put in the place of a function that it calls."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and nn.Linear.forward is _LINEAR_FORWARD
        and nn.functional.linear is _LINEAR
        and not hooks_of(layer)
    )


def untouched_activation(module: nn.Module) -> str | None:
    """The name of the function, "gelu" (by erf) or "relu", if calling the module does no more than that function: it
    is of transformers' class for it, no hook sees its calls, and nothing was put in the place of what it calls."""
    name, forward = _ACTIVATIONS.get(type(module), (None, None))
    if name is None or "forward" in vars(module) or type(module).forward is not forward or hooks_of(module):
        return None
    if name == "gelu" and (getattr(module, "act", None) is not _GELU or nn.functional.gelu is not _GELU):
        return None
    return name


def is_watched(*modules: nn.Module) -> bool:
    """Whether a hook or a replaced `forward` may see what one of the modules returns."""
    return any("forward" in vars(module) or hooks_of(module) for module in modules)


# --- oneDNN ----------------------------------------------------------------------------------------------------------


def _require_onednn() -> None:
    if not torch.backends.mkldnn.is_available():
        raise _Unavailable("torch was built without oneDNN")


def _find_linear(activation: str = "none") -> Callable:
    def find() -> Any:
        _require_onednn()
        multiply = torch.ops.mkldnn._linear_pointwise.default
        return lambda states, weight, bias=None: multiply(states, weight, bias, activation, [], "none")

    return find


def _public_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    return nn.functional.linear(states, weight.to_dense() if weight.is_mkldnn else weight, bias)


# (states, weight, bias): (..., in_features), (out_features, in_features), (out_features,) -> (..., out_features); the
# weight also as `pack_weight` gives it.
onednn_linear = Guarded(
    "torch.ops.mkldnn._linear_pointwise",
    _find_linear(),
    _public_linear,
    lambda: (example_numbers(3, 17), example_numbers(19, 17), example_numbers(19)),
)

# The same with an activation after it, by its name.
onednn_activated_linear = {
    name: Guarded(
        "torch.ops.mkldnn._linear_pointwise",
        _find_linear(name),
        lambda states, weight, bias=None, activate=activate: activate(_public_linear(states, weight, bias)),
        lambda: (example_numbers(3, 17), example_numbers(19, 17), example_numbers(19)),
    )
    for name, activate in (("gelu", nn.functional.gelu), ("relu", nn.functional.relu))
}


def _find_linear_add() -> Callable:
    _require_onednn()
    multiply = torch.ops.mkldnn._linear_pointwise.binary
    return lambda states, weight, bias, residual: multiply(states, residual, weight, bias, "add")


# (states, weight, bias, residual), the last (..., out_features) -> residual + the linear layer's output.
onednn_linear_add = Guarded(
    "torch.ops.mkldnn._linear_pointwise",
    _find_linear_add,
    lambda states, weight, bias, residual: residual + _public_linear(states, weight, bias),
    lambda: (example_numbers(3, 17), example_numbers(19, 17), example_numbers(19), example_numbers(3, 19)),
)


def _find_packing(dtype: torch.dtype) -> Callable:
    def find() -> Any:
        _require_onednn()
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise _Unavailable("the processor has no instructions for bfloat16")
        return torch.ops.mkldnn._reorder_linear_weight.default

    return find


def _multiplied(weight: torch.Tensor) -> torch.Tensor:
    multiply = _find_linear()() if weight.is_mkldnn else nn.functional.linear
    return multiply(example_numbers(3, 17, dtype=weight.dtype), weight)


# A weight (out_features, in_features) laid out as oneDNN likes it best, as an opaque tensor; the weight itself where
# that cannot be.
pack_weight = {
    dtype: Guarded(
        "torch.ops.mkldnn._reorder_linear_weight or torch.ops.mkldnn._is_mkldnn_bf16_supported",
        _find_packing(dtype),
        lambda weight: weight,
        lambda dtype=dtype: (example_numbers(19, 17, dtype=dtype),),
        _multiplied,
    )
    for dtype in (torch.float32, torch.bfloat16)
}


# --- attention -------------------------------------------------------------------------------------------------------


def _public_softmax_backward(grad_weights: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    precision = torch.promote_types(weights.dtype, torch.float32)
    weighted = grad_weights.to(precision) * weights.to(precision)
    return (weighted - weights * weighted.sum(-1, keepdim=True)).to(weights.dtype)


def _find_softmax_backward() -> Callable:
    differentiate = torch.ops.aten._softmax_backward_data.default
    return lambda grad_weights, weights: differentiate(grad_weights, weights, -1, weights.dtype)


# (gradient of the weights, weights), each (..., keys) -> the gradient of the scores
softmax_backward = Guarded(
    "torch.ops.aten._softmax_backward_data",
    _find_softmax_backward,
    _public_softmax_backward,
    lambda: (example_numbers(3, 5), example_numbers(3, 5).softmax(-1)),
)


__all__ = [
    "Guarded",
    "example_numbers",
    "hooks_of",
    "is_plain_eager",
    "is_untouched_linear",
    "is_watched",
    "onednn_activated_linear",
    "onednn_linear",
    "onednn_linear_add",
    "pack_weight",
    "softmax_backward",
    "untouched_activation",
]
