"""The linear layer equals torch's own, forward and backward, wherever it takes its own way."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from transformer_tools import make_model, tokens

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


# --- tools that look for exact linear layers -------------------------------------------------------------------------


def linear_layers(model):
    return [module for module in model.modules() if type(module) is torch.nn.Linear]


def every_model(tiny_model):
    return {
        "classifier": (tiny_model(pooling="attention"), {"pixel_values": torch.randn(2, 3, 8, 8)}),
        "translator": (make_model(), {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)}),
        "relative_xl": (
            make_model(position_embedding="relative_xl"),
            {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)},
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["classifier", "translator", "relative_xl"])
def test_torch_quantizes_every_layer(tiny_model, name):
    model, inputs = every_model(tiny_model)[name]
    layers = linear_layers(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    replaced = [m for m in quantized.modules() if type(m) is torch.ao.nn.quantized.dynamic.Linear]
    assert len(replaced) == len(layers) == sum(isinstance(m, torch.nn.Linear) for m in model.modules()) > 8
    with torch.no_grad():
        expected, got = model(**inputs).logits, quantized(**inputs).logits
    assert 0 < (got - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["classifier", "translator", "relative_xl"])
def test_hooks_see_every_layer_once_and_change_what_it_gives(tiny_model, name):
    """As thop, Captum and other tools that count or attribute place them."""
    model, inputs = every_model(tiny_model)[name]
    layers, seen = linear_layers(model), []
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(module))
    with torch.no_grad():
        expected = model(**inputs).logits
        assert sorted(map(id, seen)) == sorted(map(id, layers))
        model.get_submodule(next(n for n, m in model.named_modules() if m is layers[1])).register_forward_hook(
            lambda module, args, output: output + 1
        )
        assert not torch.allclose(model(**inputs).logits, expected)


@pytest.mark.parametrize("name", ["classifier", "translator"])
def test_operations_are_counted_whole(tiny_model, name, monkeypatch):
    """Two for each number of a matrix and each vector that meets it."""
    model, inputs = every_model(tiny_model)[name]
    model.set_attn_implementation("eager")
    counts, matmul = [], torch.matmul

    def counting_matmul(left, right):
        counts.append(2 * left.numel() * right.shape[-1])
        return matmul(left, right)

    hooks = [
        layer.register_forward_hook(lambda layer, args, _: counts.append(2 * args[0].numel() * layer.out_features))
        for layer in linear_layers(model)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert len(counts) == len(hooks)
    with FlopCounterMode(display=False) as counter:
        monkeypatch.setattr(torch, "matmul", counting_matmul)  # of attention
        model(**inputs)
    assert len(counts) > len(hooks) and counter.get_total_flops() == sum(counts)


def test_backward_hooks_and_a_replaced_forward_are_heard():
    layer, seen = Map(7, 6), []
    layer.layer.register_full_backward_hook(lambda *args: seen.append("backward"))
    layer(torch.randn(5, 7, requires_grad=True)).sum().backward()
    assert seen == ["backward"]
    layer = Map(7, 6)
    layer.layer.forward = lambda states: states * 0
    assert layer(torch.randn(5, 7)).abs().sum() == 0


def weight_norm(layer, output, patch):
    torch.nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data *= 2
    return 2 * (output - layer.bias) + layer.bias


def prune_all(layer, output, patch):
    prune.ln_structured(layer, "weight", amount=6, n=2, dim=0)
    return layer.bias.expand_as(output)


def take_a_subclass(layer, output, patch):
    layer.__class__ = type("Doubled", (torch.nn.Linear,), {"forward": lambda self, states: 2 * output})
    return 2 * output


def patch_the_class(layer, output, patch):
    patch.setattr(torch.nn.Linear, "forward", lambda self, states: 2 * output)
    return 2 * output


def patch_the_function(layer, output, patch):
    patch.setattr(torch.nn.functional, "linear", lambda *args: 2 * output)
    return 2 * output


LAYER_CHANGES = [weight_norm, prune_all, take_a_subclass, patch_the_class, patch_the_function]


@pytest.mark.parametrize("change", LAYER_CHANGES, ids=lambda change: change.__name__)
def test_what_changes_a_layer_is_heard(change, monkeypatch, onednn_calls):
    torch.manual_seed(0)
    model, states = Map(7, 6), torch.randn(5, 7)
    expected = change(model.layer, twin_of(model)(states).detach(), monkeypatch)
    torch.testing.assert_close(model(states), expected)
    assert not onednn_calls
