"""Every private name of torch may go, change or fail: the results stay the same, with one warning."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformer_tools import make_model, tokens

from hf_vit.models import cpu_int8_operators, cpu_operators
from hf_vit.models.cpu_linear import linear
from hf_vit.models.cpu_operators import Guarded


@pytest.fixture
def fresh_guards():
    """Guards that look their names up again, in the test and after it."""
    for guard in Guarded.instances:
        guard.reset()
    yield
    for guard in Guarded.instances:
        guard.reset()


@pytest.fixture
def warnings_given(monkeypatch):
    """The texts of warnings of `cpu_operators`."""
    texts = []
    monkeypatch.setattr(cpu_operators.logger, "warning", texts.append)
    return texts


class Changed:
    """A namespace with another attribute in one place, or none there."""

    def __init__(self, namespace, name, value):
        self._namespace, self._name, self._value = namespace, name, value

    def __getattr__(self, name):
        if name != self._name:
            return getattr(self._namespace, name)
        if self._value is None:
            raise AttributeError(name)
        return self._value


def fail(*args, **kwargs):
    raise RuntimeError("not implemented")


def take_another(*, argument):
    return argument


def give_other_numbers(*args, **kwargs):
    return torch.zeros(1)


BREAKS = {"missing": None, "fails": fail, "other arguments": take_another, "other result": give_other_numbers}
OPERATORS = {
    "_linear_pointwise": "mkldnn",
    "_reorder_linear_weight": "mkldnn",
    "_is_mkldnn_bf16_supported": "mkldnn",
    "linear_prepack": "quantized",
    "linear_dynamic": "quantized",
    "_softmax_backward_data": "aten",
}
FUNCTIONS = {
    "_len_torch_dispatch_stack": torch._C,
    "_len_torch_function_stack": torch._C,
    "maybe_current_level": torch._C._functorch,
    "_current_level": torch.autograd.forward_ad,
    "quantize_per_channel": torch,
}
# What tells of modes alone cannot be checked by its result, nor can what a machine without bf16 says.
UNCHECKED = {"_len_torch_dispatch_stack", "_len_torch_function_stack", "maybe_current_level", "_current_level"}
CASES = [
    (name, kind)
    for name in (*OPERATORS, *FUNCTIONS)
    for kind in BREAKS
    if not (name in UNCHECKED and kind == "other result")
    and not (name == "_current_level" and kind != "missing")
    and not (name == "_is_mkldnn_bf16_supported" and kind == "other result")
]


def break_name(monkeypatch, name, kind):
    value = BREAKS[kind]
    if name in OPERATORS:
        namespace = OPERATORS[name]
        operator = value if value is None or name.startswith("_is_") else SimpleNamespace(default=value)
        if name == "linear_prepack":
            operator = value
        monkeypatch.setattr(torch.ops, namespace, Changed(getattr(torch.ops, namespace), name, operator))
    elif value is None:
        monkeypatch.delattr(FUNCTIONS[name], name)
    else:
        monkeypatch.setattr(FUNCTIONS[name], name, value)


def all_results(tiny_model, images):
    """Outputs, gradients and texts of inference, training and generation, in fp32, bf16 and int8."""
    results, vit, ids = {}, tiny_model(), tokens()
    model = make_model()
    for name, image_model in (("fp32", vit), ("bf16", tiny_model().bfloat16())):
        loss = image_model(images(image_model), labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        results[f"{name} training"] = [loss.detach(), *(p.grad for p in image_model.parameters())]
    model(ids, labels=ids).loss.backward()
    results["fp32 training of texts"] = [p.grad for p in model.parameters()]
    model.zero_grad()
    with torch.no_grad():
        results["fp32 inference"] = [vit(images(vit)).logits]
        for name, changed in (
            ("fp32 packed", model.pack_weights()),
            ("bf16 packed", make_model().bfloat16().pack_weights()),
            ("int8", make_model().quantize_dynamic()),
        ):
            results[name] = [changed(ids, decoder_input_ids=ids).logits]
            if name != "bf16 packed":
                results[f"{name} texts"] = [changed.generate(ids, num_beams=n, max_new_tokens=6) for n in (1, 3)]
    return results


@pytest.fixture
def expected(tiny_model, images, fresh_guards, cache={}):  # noqa: B006 (what is expected never changes)
    if not cache:
        cache.update(all_results(tiny_model, images))
        for guard in Guarded.instances:
            guard.reset()
    return cache


def assert_same(results, expected):
    for name, values in results.items():
        tolerance = 3e-2 if name.startswith("bf16") else 1e-5
        for got, want in zip(values, expected[name], strict=True):
            assert got.dtype == want.dtype
            if not got.is_floating_point():
                assert torch.equal(got, want), name
            else:
                assert (got - want).float().norm() <= tolerance * want.float().norm() + 1e-7, name


@pytest.mark.parametrize("name,kind", CASES)
def test_results_without_a_private_name(
    name, kind, expected, tiny_model, images, monkeypatch, fresh_guards, warnings_given
):
    break_name(monkeypatch, name, kind)
    assert_same(all_results(tiny_model, images), expected)
    assert len(warnings_given) == 1
    assert name in warnings_given[0]
    assert torch.__version__ in warnings_given[0]


def test_results_without_the_hooks_of_modules(expected, tiny_model, images, monkeypatch, fresh_guards, warnings_given):
    monkeypatch.setattr(cpu_operators.hooks_of, "find", fail)  # modules themselves need the names
    assert_same(all_results(tiny_model, images), expected)
    assert len(warnings_given) == 1


def test_results_when_switched_off(expected, tiny_model, images, monkeypatch, fresh_guards, warnings_given):
    monkeypatch.setattr(Guarded, "mode", "plain")
    for guard in Guarded.instances:
        monkeypatch.setattr(guard, "find", fail)
    assert_same(all_results(tiny_model, images), expected)
    assert not warnings_given
    assert {guard.why_not() for guard in Guarded.instances} == {"HF_VIT_CPU_PATHS=plain"}


@pytest.mark.parametrize("mode,message", [("plain", "plain\n"), ("fast", "must be one of auto, plain, got 'fast'")])
def test_the_switch_is_read_from_the_environment(mode, message):
    command = "from hf_vit.models.cpu_operators import Guarded; print(Guarded.mode)"
    environment = {**os.environ, "HF_VIT_CPU_PATHS": mode}
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment)
    assert message in result.stdout + result.stderr


def test_a_name_that_fails_later_is_given_up_then(monkeypatch, fresh_guards, warnings_given):
    layer, states = torch.nn.Linear(7, 6), torch.randn(5, 7)
    with torch.no_grad():
        linear(layer, states)
        monkeypatch.setattr(cpu_operators.onednn_linear, "_private", fail)
        for _ in range(2):
            torch.testing.assert_close(linear(layer, states), layer(states))
    assert len(warnings_given) == 1 and "not implemented" in warnings_given[0]


def test_errors_of_the_caller_are_the_callers(fresh_guards, warnings_given):
    layer = torch.nn.Linear(7, 6)
    for call in (layer, lambda states: linear(layer, states)):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            call(torch.randn(5, 8))
    assert cpu_operators.onednn_linear.why_not() is None and not warnings_given


def fail_for_memory(*args):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def test_a_lack_of_memory_is_no_fault_of_a_name(monkeypatch, fresh_guards, warnings_given):
    layer = torch.nn.Linear(7, 6)
    if cpu_operators.onednn_linear.why_not() is not None:
        pytest.skip(cpu_operators.onednn_linear.why_not())
    monkeypatch.setattr(cpu_operators.onednn_linear, "_private", fail_for_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        linear(layer, torch.randn(5, 7))
    assert not warnings_given


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("shape", [(1, 33), (20, 33)])
def test_the_public_int8_layer_is_the_private_one(shape, reduce_range, fresh_guards):
    if cpu_int8_operators.int8_weight.why_not() is not None:
        pytest.skip(cpu_int8_operators.int8_weight.why_not())
    generator = torch.Generator().manual_seed(0)
    weight, bias, states = (torch.randn(size, generator=generator) for size in ((17, 33), (17,), shape))
    for offset in (0.0, 3.0, -3.0):  # numbers of both signs, and of one
        packed = cpu_int8_operators.int8_weight(weight, bias)
        public = cpu_int8_operators.int8_weight.public(weight, bias)
        got = cpu_int8_operators.int8_linear(states + offset, public, reduce_range)
        torch.testing.assert_close(got, cpu_int8_operators.int8_linear(states + offset, packed, reduce_range))
        unpacked = cpu_int8_operators._int8_linear.public(states + offset, packed, reduce_range)
        torch.testing.assert_close(unpacked, got)


def test_the_softmax_gradient_is_that_of_autograd():
    scores = torch.randn(3, 5, 7, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(3, 5, 7, dtype=torch.double)
    weights = scores.softmax(-1)
    (expected,) = torch.autograd.grad(weights, scores, cotangent)
    for function in (cpu_operators.softmax_backward, cpu_operators.softmax_backward.public):
        torch.testing.assert_close(function(cotangent, weights.detach()), expected)
