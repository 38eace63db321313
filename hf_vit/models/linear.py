"""A linear layer that is fast on every CPU."""

import torch
from torch import nn

# The operator behind torch.compile's CPU linear layers; absent where torch was built without oneDNN.
_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

_PLAIN_TYPES = (torch.Tensor, nn.Parameter)


def _multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _onednn_linear(states, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """states @ weight.T + bias and its gradients by oneDNN; gradients that are differentiated again, by torch."""

    @staticmethod
    def forward(ctx, states, weight, bias):
        ctx.save_for_backward(states, weight)
        return _multiply(states, weight, bias)

    @staticmethod
    def backward(ctx, grad_output):
        states, weight = ctx.saved_tensors
        multiply = nn.functional.linear if torch.is_grad_enabled() else _multiply
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        grad_states = multiply(grad_output, weight.t()) if needs_states else None
        grad_weight = multiply(rows.t(), states.reshape(-1, states.shape[-1]).t()) if needs_weight else None
        return grad_states, grad_weight, rows.sum(0) if needs_bias else None


def is_plain_eager(*tensors: torch.Tensor) -> bool:
    """Whether these are ordinary tensors, computed at once: nothing traces, compiles, transforms, fakes or counts the
    operators, which should then be torch's own."""
    return (
        all(type(tensor) in _PLAIN_TYPES for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _onednn_serves(states: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        type(weight) in _PLAIN_TYPES
        and weight.dtype == torch.float32
        and _onednn_linear is not None
        and is_plain_eager(states, weight)
        and states.device.type == weight.device.type == "cpu"
        and states.dtype == torch.float32
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """`torch.nn.Linear`, its fp32 products on a CPU done by oneDNN, which fuses the bias and, on processors that are
    not Intel's, is about twice as fast as MKL, which torch takes. Elsewhere it is `torch.nn.Linear`.

    (..., in_features) -> (..., out_features)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not _onednn_serves(input, self.weight):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _OneDNNLinear.apply(input, self.weight, self.bias)
        return _multiply(input, self.weight, self.bias)


__all__ = ["Linear", "is_plain_eager"]
