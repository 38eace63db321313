"""Each processor takes the ways that were measured on its like, an unknown one torch's own, all with one result."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from hf_vit.models import attention, cpu_linear, cpu_operators, cpu_paths, cpu_processor
from hf_vit.models.cpu_linear import PackedParameter, linear
from hf_vit.models.cpu_paths import measured_processor
from hf_vit.models.vit_layer import HfViTLayer

ZEN4 = frozenset({"avx2", "avx512_f", "avx512_vnni", "avx512_bf16"})


@pytest.mark.parametrize(
    "vendor,flags,expected",
    [
        ("AuthenticAMD", ZEN4, "amd"),
        ("AuthenticAMD", {"avx2"}, None),
        ("GenuineIntel", ZEN4 | {"amx_bf16"}, "intel"),
        ("GenuineIntel", ZEN4, None),
        ("HygonGenuine", ZEN4, None),
        ("", frozenset(), None),
    ],
)
def test_what_is_measured(vendor, flags, expected):
    assert measured_processor(vendor, frozenset(flags)) == expected


@pytest.mark.parametrize(
    "limit",
    [
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    ],
    ids=lambda limit: "=".join(*limit.items()),
)
def test_emulated_processors_take_plain_ways_to_the_same_logits(limit, tiny_model, images, tmp_path):
    """In another process, for the limits are read when it begins."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        torch.save({"images": images(model), "logits": model(images(model)).logits}, tmp_path / "expected.pt")
    program = f"""
import torch
from hf_vit import HfViTForImageClassification
from hf_vit.models import cpu_paths
from hf_vit.models.cpu_linear import PackedParameter
assert cpu_paths.PROCESSOR is None
model = HfViTForImageClassification.from_pretrained({str(tmp_path)!r}).pack_weights()
assert not any(type(parameter) is PackedParameter for parameter in model.parameters())
stored = torch.load({str(tmp_path / "expected.pt")!r})
with torch.inference_mode():
    torch.testing.assert_close(model(stored["images"]).logits, stored["logits"], atol=1e-5, rtol=1e-5)
"""
    environment = {**os.environ, **limit}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("limit,has_any", [("AVX2", False), ("AVX512_CORE_VNNI", False), ("ALL", True)])
def test_limits_of_onednn_are_known(limit, has_any, monkeypatch):
    monkeypatch.setattr(cpu_processor, "_flags_of_torch", lambda: set(ZEN4))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    flags = cpu_processor.processor_flags()
    assert ("avx512_bf16" in flags) is has_any
    assert ("avx512_vnni" in flags) is (limit != "AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert cpu_processor.processor_flags() == {"avx2"}


def results_of(model, pixel_values):
    """Logits of inference, plain and packed, the loss and gradients of training."""
    with torch.inference_mode():
        logits = model(pixel_values).logits
        packed = model.pack_weights()(pixel_values).logits
    model.unpack_weights()
    loss = model(pixel_values, labels=torch.tensor([0, 1, 2])).loss
    return [logits, packed, loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("processor", ["amd", "intel"])
def test_every_processor_gives_the_results_of_the_plain_way(model, images, processor, monkeypatch):
    monkeypatch.setattr(cpu_paths, "PROCESSOR", None)
    pixel_values = images(model)
    exact = results_of(model, pixel_values)
    monkeypatch.setattr(cpu_paths, "PROCESSOR", processor)
    for got, expected in zip(results_of(model, pixel_values), exact, strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm() + 1e-6
    model, pixel_values = model.bfloat16(), pixel_values.bfloat16()
    fast = results_of(model, pixel_values)
    monkeypatch.setattr(cpu_paths, "PROCESSOR", None)
    # Hardly less exact in all; the few numbers of a small tensor are rounded now this way, now that.
    errors, plain_errors = (rounding_errors(results, exact) for results in (fast, results_of(model, pixel_values)))
    assert errors.norm() <= 2 * plain_errors.norm()
    assert (errors <= 4 * plain_errors + 2**-8 * torch.stack([each.norm() for each in exact]) + 1e-5).all()


def rounding_errors(results, exact):
    """The norm of the error of each tensor."""
    return torch.stack([(got.float() - expected).norm() for got, expected in zip(results, exact, strict=True)])


@pytest.mark.parametrize(
    "processor,training,inference", [("amd", False, False), ("intel", True, False), (None, True, True)]
)
def test_training_and_inference_are_chosen_apart(processor, training, inference, monkeypatch):
    monkeypatch.setattr(cpu_paths, "PROCESSOR", processor)
    states, weight = torch.randn(3, 8), nn.Parameter(torch.randn(4, 8))
    assert (cpu_paths.why_not_onednn_linear(states, weight) is not None) is training
    with torch.no_grad():
        assert (cpu_paths.why_not_onednn_linear(states, weight) is not None) is inference


def test_amx_attends_by_the_fused_kernel_forward_and_by_matmuls_backward(monkeypatch):
    monkeypatch.setattr(cpu_paths, "PROCESSOR", "intel")
    calls, fused = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    query, key, value = (torch.randn(2, 2, 5, 8).bfloat16().requires_grad_() for _ in range(3))
    output = attention.chunked_attention(query, key, value, 0.5)
    assert len(calls) == 1
    got = torch.autograd.grad(output.float().square().sum(), (query, key, value))
    assert len(calls) == 1
    twins = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    expected = torch.autograd.grad(fused(*twins, scale=0.5).square().sum(), twins)
    for mine, theirs in zip(got, expected):
        assert (mine.float() - theirs).norm() <= 0.03 * theirs.norm()


# --- activation and residual in the matmul ---------------------------------------------------------------------------


@pytest.fixture
def fused(monkeypatch):
    """The names of the fused operators, as they are called."""
    calls = []
    for name, operator in cpu_operators.onednn_activated_linear.items():
        if operator.why_not() is not None:
            pytest.skip(operator.why_not())
        record = lambda *args, operator=operator, name=name: calls.append(name) or operator(*args)  # noqa: E731
        monkeypatch.setitem(cpu_linear.onednn_activated_linear, name, record)
    add = cpu_linear.onednn_linear_add
    monkeypatch.setattr(cpu_linear, "onednn_linear_add", lambda *args: calls.append("add") or add(*args))
    return calls


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_the_fused_layer_is_the_chain_of_its_parts(fused, packed, activation, has_residual):
    torch.manual_seed(0)
    layer, states = nn.Linear(17, 19), torch.randn(2, 5, 17)
    act, residual = ACT2FN[activation] if activation else None, torch.randn(2, 5, 19) if has_residual else None
    with torch.no_grad():
        expected = layer(states) if act is None else act(layer(states))
        expected = expected if residual is None else residual + expected
        if packed:
            cpu_linear.pack_weights(layer)
        torch.testing.assert_close(linear(layer, states, act, residual), expected, atol=1e-6, rtol=1e-5)
    assert (type(layer.weight) is PackedParameter) == packed
    named = [activation] if activation in ("gelu", "relu") else ["add"] if has_residual and not activation else []
    assert fused == named


def test_a_layer_fuses_its_activation_and_its_residual(fused, tiny_model, images):
    model = tiny_model()
    with torch.inference_mode():
        model(images(model))
    assert fused == ["gelu", "add"] * 2
    model(images(model))  # with gradients
    assert len(fused) == 4


def unfused_activation(layer):
    layer.mlp.activation.register_forward_hook(lambda module, args, output: output * 2)


def replace_activation(layer):
    layer.mlp.activation = ACT2FN["gelu_new"]


def hook_the_branch(layer):
    layer.mlp.register_forward_hook(lambda module, args, output: output * 2)


def hook_dropout(layer):
    layer.dropout.register_forward_hook(lambda module, args, output: output * 2)


def replace_mlp(layer):
    layer.mlp = nn.Linear(32, 32)


@pytest.mark.parametrize(
    "change",
    [unfused_activation, replace_activation, hook_the_branch, hook_dropout, replace_mlp],
    ids=lambda change: change.__name__,
)
def test_what_is_watched_or_replaced_is_not_fused_away(change, tiny_config, monkeypatch):
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = "sdpa"
    layer, states = HfViTLayer(config, 0.0).eval(), torch.randn(2, 5, 32)
    change(layer)
    with torch.no_grad():
        got = layer(states)
        monkeypatch.setattr(cpu_paths, "PROCESSOR", None)
        torch.testing.assert_close(got, layer(states))
