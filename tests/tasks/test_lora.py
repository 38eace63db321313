"""Adapters merged into a saved model, against the adapted one and against peft's own loading."""

import copy

import pytest
import torch
from peft import PeftModel

from hf_vit import HfViTForImageClassification, train
from hf_vit.tasks.image_classification.models import head_parameters
from hf_vit.tasks.lora import LoraArguments, add_adapters, merged


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def adapted(model, **options):
    """The model with adapters that are not zero."""
    tuned = add_adapters(model, LoraArguments(lora_r=2, **options), head_parameters(model), "owner/base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return tuned


@pytest.mark.parametrize("targets", [None, ["qkv_proj"]])
def test_the_saved_model_answers_as_the_adapted_one_and_as_peft_does(tiny_model, tmp_path, pixels, targets):
    model = tiny_model(use_distillation_token=True)
    base = copy.deepcopy(model)
    tuned = adapted(model, lora_target_modules=targets)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name or "distillation_head" in name for name in trained)
    with torch.inference_mode():
        expected, start = model.eval()(pixel_values=pixels).logits, base(pixel_values=pixels).logits
        merged(tuned, model.state_dict(), tmp_path).save_pretrained(tmp_path)
        loaded = HfViTForImageClassification.from_pretrained(tmp_path)
        by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_peft(pixel_values=pixels).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - start).abs().max() > 0.01
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert '"base_model_name_or_path": "owner/base"' in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert not any("lora" in name for name in loaded.state_dict())


def test_adapters_that_cannot_be(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="no layer is called 'qkv_pro'; did you mean 'qkv_proj'"):
        adapted(model, lora_target_modules=["qkv_pro"])
    with pytest.raises(ValueError, match="--lora_r must be >= 1, found 0"):
        LoraArguments(lora_r=0)
    with pytest.raises(ValueError, match="--lora_r adapts a checkpoint"):
        train.parse(["--recipe=digits", "--lora_r=4"])
    with pytest.raises(ValueError, match="--lora_r and --train_only"):
        train.parse(["--recipe=digits", "--model_name_or_path=x/y", "--lora_r=4", "--train_only=head"])
