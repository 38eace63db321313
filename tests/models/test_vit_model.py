"""Duties of any vision model of transformers: start, save and load, return outputs, take other sizes and types."""

import json

import pytest
import timm
import torch
import transformers
from scipy import stats

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTModel
from hf_vit.conversion.models import from_peer
from hf_vit.models.vit_checks import POSITION_EMBEDDINGS
from hf_vit.models.vit_variants import variant_names

MODEL_CLASSES = [HfViTModel, HfViTForImageClassification, HfViTBackbone]


def assert_close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# --- configuration ---------------------------------------------------------------------------------------------------


def test_config_survives_a_file(tiny_config, architecture, tmp_path):
    config = tiny_config(**architecture, id2label={0: "cat", 1: "dog"}, num_labels=2, out_indices=[1, 2])
    config.save_pretrained(tmp_path)
    loaded = HfViTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.num_labels == 2 and loaded.id2label == {0: "cat", 1: "dog"}


def test_config_shares_the_defaults_of_vit():
    ours, peer = HfViTConfig().to_dict(), transformers.ViTConfig().to_dict()
    shared = set(ours) & set(peer) - {"model_type", "auto_map"}
    assert len(shared) > 10
    differing = {name: (ours[name], peer[name]) for name in shared if ours[name] != peer[name]}
    assert differing == {"layer_norm_eps": (1e-6, 1e-12)}  # as the original ViT, timm and DeiT


def test_pooling_may_be_a_tuple(tiny_config, tiny_model, images, tmp_path):
    tiny_config(pooling=("cls", "mean")).save_pretrained(tmp_path)
    assert HfViTConfig.from_pretrained(tmp_path).poolings == ("cls", "mean")
    several = [tiny_model(pooling=names) for names in (("cls", "mean"), ["cls", "mean"])]
    assert torch.equal(*(model(images(model)).logits for model in several))


@pytest.mark.parametrize("name", [name for name in variant_names() if timm.is_model(name)])
def test_variants_have_the_sizes_of_timms_models(name):
    with torch.device("meta"):
        peer = timm.create_model(name, num_classes=1000)
        ours = HfViTForImageClassification(HfViTConfig.from_variant(name, num_labels=1000))
    assert ours.num_parameters() == sum(parameter.numel() for parameter in peer.parameters())
    assert ours.config.num_attention_heads == peer.blocks[0].attn.num_heads
    assert list(ours.config.grid_size) == list(peer.patch_embed.grid_size)


# --- initialisation --------------------------------------------------------------------------------------------------


def made_from_config(config):
    return HfViTForImageClassification(config)


def made_with_all_weights_missing(config):
    """Built on the meta device, then filled in: the way of from_pretrained."""
    return HfViTForImageClassification.from_pretrained(None, config=config, state_dict={})


@pytest.mark.parametrize("make", [made_from_config, made_with_all_weights_missing])
def test_every_parameter_is_initialised(tiny_config, architecture, make):
    torch.manual_seed(0)
    model = make(tiny_config(**architecture, hidden_size=64, initializer_range=0.1))
    distribution = stats.truncnorm(-2, 2, scale=0.1 / stats.truncnorm.std(-2, 2))
    drawn = []
    for name, parameter in model.named_parameters():
        assert parameter.ndim  # FSDP refuses scalars
        if "poolings.attention" in name or name.endswith(".frequencies"):
            continue  # test_vit_parts.py and test_vit_families.py have their start
        constant = None
        if name.endswith("bias") or "relative_position_bias" in name:
            constant = 0.0
        elif "norm" in name or (".stem." in name and parameter.ndim == 1):
            constant = 1.0
        elif "layer_scale" in name:
            constant = 0.1
        elif name.endswith("weight_logit"):
            constant = torch.tensor(0.3).logit().item()
        if constant is None:
            values = parameter.detach().flatten()
            assert stats.kstest(values, distribution.cdf).pvalue > 1e-4, name
            drawn.append(values)
        else:
            assert_close(parameter.data, torch.full_like(parameter, constant))
    drawn = torch.cat(drawn)
    assert drawn.std().item() == pytest.approx(0.1, rel=0.02)  # what is left after truncation
    assert drawn.mean().item() == pytest.approx(0, abs=0.002)


def test_buffers_are_filled_in_after_the_meta_device(tiny_config, architecture):
    config = tiny_config(**architecture)
    expected = dict(made_from_config(config).named_buffers())
    got = dict(made_with_all_weights_missing(config).named_buffers())
    assert got.keys() == expected.keys()
    closed_forms = {"sincos_1d", "sincos_2d", "rope_2d", "rope_axial"}
    assert bool(expected) == bool(closed_forms & set(config.position_embeddings))
    for name, buffer in got.items():
        assert torch.equal(buffer, expected[name])


def test_class_and_distillation_tokens_start_different(tiny_config):
    embeddings = HfViTModel(tiny_config(use_distillation_token=True)).embeddings
    assert (embeddings.class_token - embeddings.distillation_token).abs().max() > 0.01


def test_a_new_head_leaves_the_loaded_body_as_it_was(tiny_model, tmp_path):
    body = tiny_model(HfViTModel, use_distillation_token=True)
    body.save_pretrained(tmp_path)
    model, info = HfViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    heads = {f"{head}.{part}" for head in ("classifier", "distillation_head") for part in ("weight", "bias")}
    assert info["missing_keys"] == heads and not info["unexpected_keys"]
    for name, parameter in body.named_parameters():
        assert torch.equal(model.vit.get_parameter(name), parameter)
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert model.classifier.bias.abs().max() == 0


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_loaded_model_computes_what_was_saved(tiny_model, architecture, images, tmp_path, model_class):
    model = tiny_model(model_class, **architecture)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    with torch.no_grad():
        got, expected = loaded(images(model)).to_tuple(), model(images(model)).to_tuple()
    assert torch.equal(torch.utils._pytree.tree_leaves(got)[0], torch.utils._pytree.tree_leaves(expected)[0])


def test_weights_are_written_as_safetensors_with_the_full_auto_map(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_hf_vit.HfViTConfig",
        "AutoModel": "modeling_hf_vit.HfViTModel",
        "AutoModelForImageClassification": "modeling_hf_vit.HfViTForImageClassification",
        "AutoBackbone": "modeling_hf_vit.HfViTBackbone",
    }
    assert config["architectures"] == ["HfViTForImageClassification"]


def test_auto_classes_know_the_model(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is HfViTConfig
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is HfViTModel
    # AutoBackbone.from_pretrained takes repositories of the Hub alone.
    assert type(transformers.AutoBackbone.from_config(HfViTConfig.from_pretrained(tmp_path))) is HfViTBackbone
    classifier = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(classifier) is HfViTForImageClassification


@pytest.mark.parametrize("pooling", ["mean", "max", "cls_mean", ["cls", "mean"]], ids=str)
@pytest.mark.parametrize("saved", ["cls", "mean"])
def test_the_norm_stays_where_it_was_when_pooling_is_switched_while_loading(
    tiny_model, images, tmp_path, saved, pooling
):
    """Before pooling in a saved `cls` model, after it in a saved `mean` model; so too after another round."""
    model = tiny_model(HfViTModel, pooling=saved)
    model.save_pretrained(tmp_path / "saved")
    switched = HfViTModel.from_pretrained(tmp_path / "saved", pooling=pooling)
    switched.save_pretrained(tmp_path / "switched")
    again = HfViTModel.from_pretrained(tmp_path / "switched")
    with torch.no_grad():
        tokens = model(images(model), output_hidden_states=True).hidden_states[-1]
        tokens = model.norm(tokens) if saved == "cls" else tokens
        cls, patches = tokens[:, 0], tokens[:, 1:]
        expected = {
            "mean": [patches.mean(1)],
            "max": [patches.amax(1)],
            "cls_mean": [(cls + patches.mean(1)) / 2],
            "['cls', 'mean']": [cls, patches.mean(1)],
        }[str(pooling)]
        expected = torch.cat([model.norm(part) if saved == "mean" else part for part in expected], dim=-1)
        for loaded in (switched, again):
            assert_close(loaded(images(model)).pooler_output, expected)


def test_the_saved_head_reads_the_mean_of_the_normed_patches(tiny_model, images, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    switched = HfViTForImageClassification.from_pretrained(tmp_path, pooling="mean")
    with torch.no_grad():
        tokens = model.vit(images(model)).last_hidden_state
        assert_close(switched(images(model)).logits, model.classifier(tokens[:, 1:].mean(1)))


def test_a_head_for_other_classes_replaces_the_saved_one(tiny_model, tmp_path):
    saved = tiny_model(use_distillation_token=True)
    saved.save_pretrained(tmp_path)
    model = HfViTForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == model.distillation_head.out_features == 7
    assert len(model.config.id2label) == 7
    assert torch.equal(model.vit.layers[1].mlp.fc1.weight, saved.vit.layers[1].mlp.fc1.weight)


@pytest.mark.parametrize("size", [[24, 40], [8, 8], [8, 40]], ids=str)
@pytest.mark.parametrize("on_prefix", [True, False])
@pytest.mark.parametrize("position_embedding", [name for name in POSITION_EMBEDDINGS if name != "none"])
def test_positions_follow_an_image_size_changed_while_loading(
    tiny_model, images, tmp_path, position_embedding, on_prefix, size
):
    model = tiny_model(
        position_embedding=position_embedding, position_embedding_on_prefix=on_prefix, num_register_tokens=2
    )
    model.save_pretrained(tmp_path / "saved")
    resized = HfViTForImageClassification.from_pretrained(tmp_path / "saved", image_size=size)
    resized.save_pretrained(tmp_path / "resized")
    again = HfViTForImageClassification.from_pretrained(tmp_path / "resized")
    assert again.config.grid_size == (size[0] // 4, size[1] // 4)
    pixel_values = images(model, 2, *size)
    with torch.no_grad():
        expected = model(pixel_values).logits
        assert_close(resized(pixel_values).logits, expected)
        assert_close(again(pixel_values).logits, expected)


def test_layers_are_left_out_while_loading(tiny_model, images, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    HfViTModel.from_pretrained(tmp_path / "whole", num_hidden_layers=1).save_pretrained(tmp_path / "part")
    backbone = HfViTBackbone.from_pretrained(tmp_path / "part")
    assert backbone.out_features == ["stage1"]
    with torch.no_grad():
        tokens = model.vit.norm(model(images(model), output_hidden_states=True).hidden_states[1])
        (features,) = backbone(images(model)).feature_maps
    assert_close(features.flatten(2).transpose(1, 2), tokens[:, 1:])


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_hidden_states_are_the_embeddings_and_each_layers_output(model, images):
    pixel_values = images(model)
    recorded = []
    for module in [model.vit.embeddings, *model.vit.layers]:
        module.register_forward_hook(lambda module, inputs, output: recorded.append(output))
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    config = model.config
    num_tokens = config.num_layer_prefix_tokens + config.grid_size[0] * config.grid_size[1]
    assert len(outputs.hidden_states) == len(recorded) == config.num_hidden_layers + 1
    for got, expected in zip(outputs.hidden_states, recorded):
        assert got.shape == (3, num_tokens, config.hidden_size)
        assert torch.equal(got, expected)


def test_tuples_hold_the_same_as_named_outputs(model, images):
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        named = model(images(model), labels=torch.tensor([0, 1, 2]), **options)
        values = model(images(model), labels=torch.tensor([0, 1, 2]), **options, return_dict=False)
        model.config.return_dict = False
        by_configuration = model(images(model), labels=torch.tensor([0, 1, 2]), **options)
    for got in (values, by_configuration):
        assert isinstance(got, tuple)
        torch.testing.assert_close(got, named.to_tuple(), atol=0, rtol=0)


def test_the_same_images_give_the_same_logits(tiny_model, architecture, images):
    """In whatever batch they come, and however often."""
    model = tiny_model(**architecture, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5)
    pixel_values = images(model)
    with torch.no_grad():
        together = model(pixel_values).logits
        assert torch.equal(model(pixel_values).logits, together)
        one_by_one = torch.cat([model(image[None]).logits for image in pixel_values])
        assert_close(one_by_one, together)
        model.train()
        assert not torch.allclose(model(pixel_values).logits, together)  # the dropouts are there


@pytest.mark.parametrize("rows,columns", [(4, 4), (7, 2), (1, 1), (9, 11)])
def test_images_of_any_multiple_of_the_patch_size_are_taken(model, images, rows, columns):
    height, width = model.config.patch_shape
    pixel_values = images(model, 2, rows * height, columns * width)
    with torch.no_grad():
        outputs = model.vit(pixel_values)
        logits = model(pixel_values).logits
    assert outputs.last_hidden_state.shape[1] == model.config.num_prefix_tokens + rows * columns
    assert logits.shape == (2, 5) and logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1])


def test_all_tensors_live_on_the_device_of_the_model(model, images):
    """A table kept outside parameters and buffers, or made on the CPU, would clash with the meta device."""
    model, pixel_values = model.to("meta"), images(model).to("meta")
    labels = torch.zeros(3, dtype=torch.long, device="meta")
    larger = torch.cat((pixel_values, pixel_values), dim=2)
    assert model(pixel_values, labels=labels, output_attentions=True).loss.device.type == "meta"
    assert model(larger).logits.device.type == "meta"


# --- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["load", "to"])
def test_half_precision_stays_close(model, images, tmp_path, dtype, way):
    model.save_pretrained(tmp_path)
    if way == "load":
        half = HfViTForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    else:
        half = HfViTForImageClassification.from_pretrained(tmp_path).to(dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    sizes = [{}, {"height": 2 * model.config.image_shape[0]}]
    with torch.no_grad():
        for size in sizes:
            got = half(images(model, **size), output_hidden_states=True)
            expected = model(images(model, **size)).logits
            assert got.logits.dtype == dtype and {states.dtype for states in got.hidden_states} == {dtype}
            assert (got.logits.float() - expected).norm() < 0.05 * expected.norm()


def test_norms_may_stay_in_fp32(model, images):
    """As preparation for training on quantised weights leaves them."""
    with torch.no_grad():
        expected = model(images(model)).logits
        model.bfloat16()
        for module in model.modules():
            if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)):
                module.float()
        got = model(images(model)).logits
    assert (got.float() - expected).norm() < 0.05 * expected.norm()


class Int8Linear(torch.nn.Module):
    """A linear layer whose weight is stored in 8 bits, as quantising backends put it in the place of any other."""

    def __init__(self, layer):
        super().__init__()
        self.scale = layer.weight.abs().max().item() / 127
        self.weight = torch.nn.Parameter((layer.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, states):
        return torch.nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def test_linear_layers_may_be_quantised(model, images):
    with torch.no_grad():
        expected = model(images(model)).logits
        for name, module in list(model.vit.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.vit.set_submodule(name, Int8Linear(module))
        got = model(images(model)).logits
    assert (got - expected).norm() < 0.05 * expected.norm()


# --- backbone --------------------------------------------------------------------------------------------------------


def test_feature_maps_equal_those_of_timm(images, tmp_path):
    peer = timm.models.VisionTransformer(
        img_size=(16, 32), patch_size=(4, 8), embed_dim=32, depth=3, num_heads=4, num_classes=5, reg_tokens=2
    )
    peer.apply(lambda module: [torch.nn.init.normal_(p, std=0.2) for p in module.parameters(recurse=False)])
    from_peer(peer.eval()).save_pretrained(tmp_path)
    backbone = HfViTBackbone.from_pretrained(tmp_path, out_indices=[1, 3])
    assert backbone.out_features == ["stage1", "stage3"] and backbone.channels == [32, 32]
    pixel_values = images(backbone, 2, 16, 32)
    with torch.no_grad():
        got = backbone(pixel_values).feature_maps
        expected = peer.get_intermediate_layers(pixel_values, n=[0, 2], reshape=True, norm=True)
        raw = HfViTBackbone.from_pretrained(tmp_path, out_features=["stem", "stage1"], apply_layernorm=False)
        stem, stage1 = raw(pixel_values).feature_maps
        unnormed = peer.get_intermediate_layers(pixel_values, n=[0], reshape=True)[0]
    assert len(got) == 2
    for ours, theirs in zip(got, expected):
        assert ours.shape == (2, 32, 4, 4)
        assert_close(ours, theirs)
    assert_close(stage1, unnormed)
    assert stem.shape == (2, 32, 4, 4)


def test_backbone_returns_a_map_per_stage_for_any_size(tiny_model, architecture, images):
    options = {**architecture, "out_indices": [0, 1, 2]}
    backbone = tiny_model(HfViTBackbone, **options)
    height, width = backbone.config.patch_shape
    outputs = backbone(images(backbone, 2, 3 * height, 5 * width), output_attentions=True)
    assert [feature_map.shape for feature_map in outputs.feature_maps] == [(2, 32, 3, 5)] * 3
    assert outputs.hidden_states is None and len(outputs.attentions) == 2
    backbone.config.return_dict = False
    for given in ({}, {"return_dict": False}):
        (maps,) = backbone(images(backbone, 2, 3 * height, 5 * width), **given)
        assert_close(maps[2], outputs.feature_maps[2])
