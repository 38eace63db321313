"""The forecast beside what the allocator is asked for."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hf_vit import (
    HfTransformerConfig,
    HfTransformerForConditionalGeneration,
    HfViTConfig,
    HfViTForImageClassification,
)
from hf_vit.cost import Setup, family_of, vit_memory

SIZES = {"image_size": 128, "patch_size": 8, "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3}


@pytest.fixture(autouse=True)
def one_thread():
    """Operators keep something for each thread, which the forecast leaves out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def peak_bytes(run):
    """The most that the allocator has given out at a time while `run` runs, over what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use = most = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events):
        in_use += change
        most = max(most, in_use)
    return most


@pytest.mark.parametrize(
    "setup",
    [
        Setup(4, attn_implementation="eager"),
        Setup(4, mixed_precision="bf16"),
        Setup(4, training=True, mixed_precision="bf16", attn_implementation="eager"),
        Setup(4, training=True, gradient_checkpointing=True),
        Setup(4, training=True, mixed_precision="bf16", gradient_checkpointing=True),
    ],
    ids=str,
)
def test_peak_memory_is_that_of_a_step(setup, monkeypatch):
    monkeypatch.setattr("hf_vit.models.cpu_operators.Guarded.mode", "plain")
    config = HfViTConfig(num_attention_heads=3, num_labels=5, attn_implementation=setup.attn_implementation, **SIZES)
    model = HfViTForImageClassification(config).train(setup.training)
    if setup.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    for parameter in model.parameters():  # whose room the forecast counts apart
        parameter.grad = torch.zeros_like(parameter)
    images = torch.zeros(4, 3, 128, 128)

    def step():
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=setup.mixed_precision == "bf16")
        with torch.set_grad_enabled(setup.training), autocast:
            total = model(images).logits.sum()
        if setup.training:
            total.backward()

    memory = vit_memory(config, setup)
    assert memory.activations + memory.working == pytest.approx(peak_bytes(step), rel=0.06)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_peak_memory_is_that_of_a_translators_step(mixed_precision, monkeypatch):
    monkeypatch.setattr("hf_vit.models.cpu_operators.Guarded.mode", "plain")
    sizes = {"vocab_size": 200, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256}
    heads = {"decoder_ffn_dim": 256, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = HfTransformerConfig(attn_implementation="sdpa", **sizes, **heads)
    model = HfTransformerForConditionalGeneration(config).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision == "bf16"):
            loss = model(torch.ones(16, 40, dtype=torch.long), labels=torch.full((16, 48), 3)).loss
        loss.backward()

    setup = Setup(16, True, mixed_precision=mixed_precision, source_tokens=40, target_tokens=48)
    memory = family_of(config).memory(config, setup)
    assert memory.activations + memory.working == pytest.approx(peak_bytes(step), rel=0.06)
