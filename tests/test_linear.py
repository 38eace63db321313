"""The linear layer equals torch's own, forward and backward, wherever it takes its own way."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from hf_vit.models import cpu_linear, cpu_operators
from hf_vit.models.cpu_linear import linear


class Map(torch.nn.Module):
    """A model of one layer, which it computes as this package's models do."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, out_features, bias=bias)

    def forward(self, states):
        return linear(self.layer, states)


def twin_of(model: Map) -> torch.nn.Linear:
    return copy.deepcopy(model.layer)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("states",)], ids=str)
def test_output_and_gradients_equal_those_of_torch(shape, bias, frozen):
    torch.manual_seed(0)
    layer = Map(7, 6, bias=bias)
    twin = twin_of(layer)
    for module in (layer.layer, twin):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
    states = torch.randn(shape, requires_grad="states" not in frozen)
    twin_states = states.detach().clone().requires_grad_("states" not in frozen)
    output, expected = layer(states), twin(twin_states)
    torch.testing.assert_close(output, expected)
    if not expected.requires_grad:
        assert not output.requires_grad
        return
    cotangent = torch.randn(expected.shape)
    output.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(states.grad, twin_states.grad)
    for (name, parameter), (_, twin_parameter) in zip(layer.layer.named_parameters(), twin.named_parameters()):
        torch.testing.assert_close(parameter.grad, twin_parameter.grad, msg=name)


def test_strided_states_and_gradients():
    torch.manual_seed(0)
    layer = Map(4, 6)
    states = torch.randn(3, 4, 5).transpose(1, 2).requires_grad_()
    torch.testing.assert_close(layer(states), twin_of(layer)(states))
    (gradient,) = torch.autograd.grad(layer(states), states, torch.ones(1, 1, 1).expand(3, 5, 6))
    (expected,) = torch.autograd.grad(twin_of(layer)(states), states, torch.ones(3, 5, 6))
    torch.testing.assert_close(gradient, expected)


# --- where oneDNN computes, and where torch must ---------------------------------------------------------------------


@pytest.fixture
def onednn_calls(monkeypatch):
    """One entry for each product that oneDNN does."""
    if cpu_operators.onednn_linear.why_not() is not None:
        pytest.skip(cpu_operators.onednn_linear.why_not())
    calls, operator = [], cpu_operators.onednn_linear
    monkeypatch.setattr(cpu_linear, "onednn_linear", lambda *args: calls.append(1) or operator(*args))
    return calls


def test_onednn_computes_forward_and_backward(onednn_calls):
    layer, states = Map(7, 6), torch.randn(5, 7, requires_grad=True)
    with torch.no_grad():
        layer(states)
    assert len(onednn_calls) == 1
    output = layer(states)
    assert len(onednn_calls) == 2
    output.sum().backward()
    assert len(onednn_calls) == 4  # gradients of the states and of the weight


def squared(layer):
    return lambda states: layer(states).square().sum()


class Subclass(torch.Tensor):
    """A tensor that may see the operators that are applied to it."""


def autocast(layer, states, tangent):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(states)


def forward_mode(layer, states, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(states, tangent))).tangent


WAYS = {
    "autocast": autocast,
    "bfloat16": lambda layer, states, tangent: copy.deepcopy(layer).bfloat16()(states.bfloat16()),
    "float64": lambda layer, states, tangent: copy.deepcopy(layer).double()(states.double()),
    "subclass": lambda layer, states, tangent: layer(states.as_subclass(Subclass)).as_subclass(torch.Tensor),
    "forward mode": forward_mode,
    "grad": lambda layer, states, tangent: torch.func.grad(squared(layer))(states),
    "vmap": lambda layer, states, tangent: torch.func.vmap(layer)(states),
    "jvp": lambda layer, states, tangent: torch.func.jvp(layer, (states,), (tangent,))[1],
    "hessian": lambda layer, states, tangent: torch.func.hessian(squared(layer))(states[0]),
    "symbolic trace": lambda layer, states, tangent: torch.fx.symbolic_trace(layer)(states),
    "make_fx": lambda layer, states, tangent: make_fx(layer)(states)(states),
    "jit trace": lambda layer, states, tangent: torch.jit.trace(layer, states, check_trace=False)(states),
    "compile": lambda layer, states, tangent: torch.compile(layer, backend="eager", fullgraph=True)(states),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_torch_computes_under_everything_that_watches_or_changes_the_operators(onednn_calls, way):
    torch.manual_seed(0)
    layer, states, tangent = Map(7, 6), torch.randn(5, 7), torch.randn(5, 7)
    got, expected = way(layer, states, tangent), way(twin_of(layer), states, tangent)
    assert not onednn_calls
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected)


def test_gradients_are_differentiated_again():
    torch.manual_seed(0)
    layer, cotangent = Map(7, 6), torch.randn(5, 7)
    results = []
    for module in (layer, twin_of(layer)):
        states = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (gradient,) = torch.autograd.grad(module(states).pow(3).sum(), states, create_graph=True)
        inputs = (states, *module.parameters())
        results.append((gradient, *torch.autograd.grad(gradient, inputs, cotangent)))
    torch.testing.assert_close(*results)


def test_operator_counters_see_an_ordinary_layer(onednn_calls):
    with FlopCounterMode(display=False) as counter:
        Map(8, 16)(torch.randn(2, 8))
    assert counter.get_total_flops() == 2 * 2 * 8 * 16 and not onednn_calls
