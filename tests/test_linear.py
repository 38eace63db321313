"""The linear layer equals torch's own, forward and backward, wherever it takes its own way."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vit.models.linear import Linear


def twin_of(layer: Linear) -> torch.nn.Linear:
    twin = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    twin.load_state_dict(layer.state_dict())
    return twin


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("states",)], ids=str)
def test_output_and_gradients_equal_those_of_torch(shape, bias, frozen):
    torch.manual_seed(0)
    layer = Linear(7, 6, bias=bias)
    twin = twin_of(layer)
    for module in (layer, twin):
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
    for (name, parameter), (_, twin_parameter) in zip(layer.named_parameters(), twin.named_parameters()):
        torch.testing.assert_close(parameter.grad, twin_parameter.grad, msg=name)


def test_strided_states_and_gradients():
    torch.manual_seed(0)
    layer = Linear(4, 6)
    states = torch.randn(3, 4, 5).transpose(1, 2).requires_grad_()
    torch.testing.assert_close(layer(states), twin_of(layer)(states))
    (gradient,) = torch.autograd.grad(layer(states), states, torch.ones(1, 1, 1).expand(3, 5, 6))
    (expected,) = torch.autograd.grad(twin_of(layer)(states), states, torch.ones(3, 5, 6))
    torch.testing.assert_close(gradient, expected)


def test_autocast_half_types_and_operator_counters_see_an_ordinary_layer():
    layer, states = Linear(8, 8), torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(states).dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(states.bfloat16()).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        Linear(8, 16)(states)
    assert counter.get_total_flops() == 2 * 2 * 8 * 16
