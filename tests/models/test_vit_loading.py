"""Cares of loading: tables that no file holds, sizes that a file lacks, names of earlier versions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTModel

# --- tables that no file holds ---------------------------------------------------------------------------------------


def on_meta(config, model_class=HfViTForImageClassification):
    with torch.device("meta"):
        return model_class(config).eval()


def emptied(model, dtype=None):
    """After `to_empty`, whose memory is filled with what nothing may read."""
    model = model.to(dtype).to_empty(device="cpu")
    for tensor in model.parameters():
        tensor.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
def test_tables_are_computed_for_models_from_the_meta_device(model, images, assign):
    loaded = on_meta(model.config)
    loaded = loaded if assign else emptied(loaded)
    loaded.load_state_dict(model.state_dict(), assign=assign)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    for got, expected in zip(loaded.buffers(), model.buffers()):
        assert torch.equal(got, expected)
    height, width = model.config.patch_shape
    for pixel_values in (images(model), images(model, 2, 3 * height, 5 * width)):
        with torch.no_grad():
            assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("model_class", [HfViTModel, HfViTBackbone])
def test_tables_are_computed_for_bodies_inside_other_modules(tiny_model, model_class):
    model = tiny_model(model_class, position_embedding="sincos_2d")
    outer = torch.nn.Sequential(on_meta(model.config, model_class))
    outer.load_state_dict(torch.nn.Sequential(model).state_dict(), assign=True)
    assert torch.equal(outer[0].embeddings.position_embedding.table, model.embeddings.position_embedding.table)


def test_tables_take_the_precision_of_a_model_that_is_emptied_or_converted(tiny_config):
    config = tiny_config(position_embedding="sincos_1d")
    expected = HfViTModel(config).embeddings.position_embedding.table
    loaded = emptied(on_meta(config, HfViTModel), torch.bfloat16)
    assert torch.equal(loaded.embeddings.position_embedding.table, expected.bfloat16())
    again = loaded.float().to_empty(device="cpu")
    assert torch.equal(again.embeddings.position_embedding.table, expected)


# --- sizes that a file lacks -----------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_config_json_lacks_is_asked_for(tiny_model, images, tmp_path, name):
    """In its place the default would resample the positions, or attend with other heads."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config.pop(name) == SIZES[name]
    file.write_text(json.dumps(config))
    for loader in (HfViTForImageClassification, HfViTConfig):
        with pytest.raises(ValueError, match=f"{name} must be in the configuration that is loaded, or be given"):
            loader.from_pretrained(tmp_path)
    loaded = HfViTForImageClassification.from_pretrained(tmp_path, **{name: SIZES[name]})
    with torch.no_grad():
        assert torch.equal(loaded(images(model)).logits, model(images(model)).logits)


# --- names of earlier versions ---------------------------------------------------------------------------------------


def with_old_names(state_dict):
    return {name.replace("distillation_head", "distillation_classifier"): value for name, value in state_dict.items()}


def test_second_heads_of_earlier_versions_are_loaded_and_saved_with_todays_name(tiny_model, images, tmp_path):
    model = tiny_model(use_distillation_token=True)
    model.save_pretrained(tmp_path / "old")
    weights = tmp_path / "old" / "model.safetensors"
    assert "distillation_head.weight" in load_file(weights)
    save_file(with_old_names(load_file(weights)), weights, metadata={"format": "pt"})
    loaded, info = HfViTForImageClassification.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixel_values = images(model)
    with torch.no_grad():
        expected = model(pixel_values)
        assert torch.equal(loaded(pixel_values).distillation_logits, expected.distillation_logits)
        loaded.save_pretrained(tmp_path / "new")
        assert load_file(tmp_path / "new" / "model.safetensors").keys() == model.state_dict().keys()
        again = HfViTForImageClassification.from_pretrained(tmp_path / "new")
        assert torch.equal(again(pixel_values).logits, expected.logits)


def test_state_dicts_of_earlier_versions_are_loaded(tiny_model, tiny_config):
    model = tiny_model(use_distillation_token=True)
    for wrap in (lambda module: module, torch.nn.Sequential):
        other = wrap(HfViTForImageClassification(tiny_config(use_distillation_token=True)))
        other.load_state_dict(with_old_names(wrap(model).state_dict()))
        for got, expected in zip(other.parameters(), model.parameters()):
            assert torch.equal(got, expected)
