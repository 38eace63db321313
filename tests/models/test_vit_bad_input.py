"""Input that does not fit is refused by the argument's name, the value found and what is allowed; odd input works."""

import re

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTModel
from hf_vit.models.losses import distillation_loss

POOLINGS = "cls, cls_tanh, mean, max, cls_mean, weighted, attention, none"
ABSOLUTE, ROTARY = "learned, learned_2d, sincos_1d, sincos_2d", "rope_2d, rope_axial, rope_mixed"
POSITIONS = f"{ABSOLUTE}, relative_bias, relative_bias_per_layer, {ROTARY}, none"


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"hidden_size": 30},
            "hidden_size must be a multiple of num_attention_heads (4), unless head_dim is given and pooling is not "
            "'attention', got 30",
        ),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"num_register_tokens": -1}, "num_register_tokens must be at least 0, got -1"),
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"image_size": 18}, "image_size must be a multiple of patch_size (4), got 18"),
        ({"image_size": [16, 18]}, "image_size must be a multiple of patch_size (4), got [16, 18]"),
        ({"image_size": [3, 16], "patch_fit": "crop"}, "image_size must be at least patch_size (4), got [3, 16]"),
        ({"patch_fit": "resize"}, "patch_fit must be one of exact, pad, crop, got 'resize'"),
        ({"image_size": 0}, "image_size must be a positive integer or a pair (height, width) of them, got 0"),
        ({"patch_size": [4, 4, 4]}, "patch_size must be a positive integer or a pair (height, width)"),
        ({"hidden_act": "gelo"}, "hidden_act must be one of gelu,"),
        ({"pooling": "avg"}, f"pooling must be one of {POOLINGS}, or a list of them, got 'avg'"),
        ({"pooling": ["cls", "avg"]}, f"pooling must be one of {POOLINGS}, or a list of them, got ['cls', 'avg']"),
        ({"pooling": []}, f"pooling must be one of {POOLINGS}, or a list of them, got []"),
        ({"pooling": ["cls", "cls"]}, "pooling must not have 'none' or a name twice in a list, got ['cls', 'cls']"),
        ({"pooling": ["none"]}, "pooling must not have 'none' or a name twice in a list, got ['none']"),
        ({"use_class_token": False}, "pooling 'cls' needs use_class_token=True, got False"),
        ({"pooling": ["max", "cls_mean"], "use_class_token": False}, "needs use_class_token=True, got False"),
        ({"pooling_norm": "both"}, "pooling_norm must be one of before, after, none, None, got 'both'"),
        ({"position_embedding": "sincos"}, f"must be one of {POSITIONS}, or a list of them, got 'sincos'"),
        ({"position_embedding": []}, f"must be one of {POSITIONS}, or a list of them, got []"),
        (
            {"position_embedding": ["learned", "sincos_2d"]},
            f"position_embedding must not have a name twice, nor two of {ABSOLUTE} or of {ROTARY}, "
            "got ['learned', 'sincos_2d']",
        ),
        ({"position_embedding": ["rope_2d", "rope_axial"]}, f"nor two of {ABSOLUTE} or of {ROTARY}, got ['rope_2d',"),
        ({"position_embedding": ["none"]}, "position_embedding must not have 'none' in a list, got ['none']"),
        ({"position_embedding_on_prefix": "cls"}, "position_embedding_on_prefix must be one of True, False, class, "),
        (
            {"position_embedding_on_prefix": "class", "position_embedding": "sincos_2d"},
            "position_embedding_on_prefix 'class' needs a learnt position_embedding, got 'sincos_2d'",
        ),
        (
            {"position_embedding_on_prefix": "class", "registers_first": True},
            "registers_first must not be True with position_embedding_on_prefix 'class'",
        ),
        ({"rope_theta": 0}, "rope_theta must be above 0, got 0"),
        ({"norm_type": "batch_norm"}, "norm_type must be one of layer_norm, rms_norm, got 'batch_norm'"),
        ({"patch_dropout_prob": 1}, "patch_dropout_prob must be in [0, 1), got 1"),
        ({"num_class_layers": -1}, "num_class_layers must be at least 0, got -1"),
        (
            {"num_class_layers": 2, "use_class_token": False, "pooling": "mean"},
            "num_class_layers must be 0 without use_class_token",
        ),
        ({"num_class_layers": 2, "key_bias": False}, "key_bias must not be False with num_class_layers 2"),
        ({"num_class_layers": 2, "registers_first": True}, "registers_first must not be True with num_class_layers 2"),
        (
            {"num_class_layers": 1, "attention_output_norm": True},
            "attention_output_norm must not be True with num_class_layers 1",
        ),
        (
            {"num_class_layers": 1, "position_embedding_on_prefix": True},
            "position_embedding_on_prefix must not be True with num_class_layers 1",
        ),
        ({"patch_embedding": "linear"}, "patch_embedding must be one of conv, hybrid, lvvit, got 'linear'"),
        ({"num_stem_blocks": -1}, "num_stem_blocks must be at least 0, got -1"),
        ({"num_stem_blocks": 1}, "num_stem_blocks must be 0 without patch_embedding 'hybrid', got 1"),
        ({"distillation_type": "warm"}, "distillation_type must be one of soft, hard, got 'warm'"),
        ({"distillation_temperature": 0}, "distillation_temperature must be above 0, got 0"),
        ({"distillation_alpha": 1.5}, "distillation_alpha must be in [0, 1], got 1.5"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in [0, 1), got 1.0"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob must be in [0, 1), got -0.1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, got 0.0"),
        ({"layer_scale_init_value": 0.0}, "layer_scale_init_value must be above 0, got 0.0"),
        ({"position_grid_size": [4]}, "position_grid_size must be a positive integer or a pair"),
        (
            {"learn_cls_mean_weight": True, "cls_mean_weight": 1},
            "cls_mean_weight must be in (0, 1) to be learnt, got 1",
        ),
        (
            {"hidden_size": 36, "num_attention_heads": 6, "position_embedding": "rope_2d"},
            "head size of queries and keys must be a multiple of 4 for position_embedding=rope_2d, got 6",
        ),
        (
            {"hidden_size": 30, "num_attention_heads": 5, "position_embedding": "sincos_2d"},
            "hidden_size must be a multiple of 4 for position_embedding=sincos_2d, got 30",
        ),
        (
            {"position_embedding": "none", "position_embedding_on_prefix": True},
            "position_embedding_on_prefix must not be True with position_embedding 'none'",
        ),
        ({"out_features": ["stage3"]}, "out_features must be a subset of stage_names"),
    ],
    ids=str,
)
def test_configurations(tiny_config, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**options)


@pytest.mark.parametrize(
    "options", [{"hidden_size": "32"}, {"pooling": 3}, {"qkv_bias": "no"}, {"image_size": 16.5}], ids=str
)
def test_configurations_of_wrong_types(tiny_config, options):
    (name,) = options
    with pytest.raises(ValueError, match=re.escape(f"{name} must be of type ")):
        tiny_config(**options)


@pytest.mark.parametrize(
    "name", ["vit_medium_patch16_224", "vit_tiny_distilled_patch16_224", "deit_tiny_patch8_224", "x"]
)
def test_variants(name):
    with pytest.raises(ValueError, match=rf"variant must be one of vit_tiny_patch16_224, .*, got '{name}'"):
        HfViTConfig.from_variant(name)


def test_fields_of_variants():
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        HfViTConfig.from_variant("vit_tiny_patch16_100")
    with pytest.raises(ValueError, match="poolings is no field of HfViTConfig, nearest: pooling"):
        HfViTConfig.from_variant("vit_tiny_patch16_224", poolings="mean")
    with pytest.raises(ValueError, match=r"xyzzy is no field of HfViTConfig$"):
        HfViTConfig.from_variant("vit_tiny_patch16_224", xyzzy=1)


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "shape,arguments,message",
    [
        ((2, 1, 16, 16), {}, "pixel_values must have shape (batch, 3, height, width), got (2, 1, 16, 16)"),
        ((3, 16, 16), {}, "pixel_values must have shape (batch, 3, height, width), got (3, 16, 16)"),
        ((2, 16, 16, 3), {}, "pixel_values must have shape (batch, 3, height, width), got (2, 16, 16, 3)"),
        ((2, 3, 18, 16), {}, "patch size 4 x 4, got 18 x 16; nearest: height 16 or 20"),
        ((2, 3, 18, 3), {}, "patch size 4 x 4, got 18 x 3; nearest: height 16 or 20 or width 4"),
        ((2, 3, 0, 16), {}, "patch size 4 x 4, got 0 x 16; nearest: height 4"),
        (None, {"labels": torch.tensor([0, 5])}, "labels must be in [0, 5), got 5"),
        (None, {"labels": torch.tensor([-1, 0])}, "labels must be in [0, 5), got -1"),
        (
            None,
            {"labels": torch.tensor([0, 1, 2])},
            "labels must have shape (2,) (class indices) or (2, 5) (distributions), got (3,)",
        ),
        (None, {"labels": torch.zeros(2, 4)}, "(2, 5) (distributions), got (2, 4)"),
        (
            None,
            {"labels": torch.tensor([0.0, 1.0])},
            "labels of shape (2,) must be class indices, got dtype torch.float32",
        ),
        (None, {"teacher_logits": torch.zeros(2, 5)}, "labels must be given with teacher_logits, got None"),
        (
            None,
            {"teacher_logits": torch.zeros(2, 4), "labels": LABELS},
            "teacher_logits must have shape (2, 5), got (2, 4)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs(tiny_model, shape, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model()(torch.zeros(shape or (2, 3, 16, 16)), **arguments)


def test_unknown_kinds_of_distillation():
    with pytest.raises(ValueError, match="distillation_type must be soft or hard, got 'warm'"):
        distillation_loss(torch.zeros(2, 5), torch.zeros(2, 5), "warm", 1.0)


@pytest.mark.parametrize("model_class", [HfViTModel, HfViTForImageClassification, HfViTBackbone])
@pytest.mark.parametrize(
    "override,message",
    [
        ({"pooling": "bogus"}, f"pooling must be one of {POOLINGS}, or a list of them, got 'bogus'"),
        ({"image_size": 18}, "image_size must be a multiple of patch_size (4), got 18"),
        ({"use_class_token": False}, "pooling 'cls' needs use_class_token=True, got False"),
    ],
    ids=str,
)
def test_overrides_while_loading(tiny_model, tmp_path, model_class, override, message):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        model_class.from_pretrained(tmp_path, **override)


def test_classifiers_without_pooling(tiny_model):
    with pytest.raises(ValueError, match="pooling must not be 'none' for image classification"):
        tiny_model(pooling="none")
    assert tiny_model(HfViTModel, pooling="none")(torch.zeros(1, 3, 16, 16)).pooler_output is None


def test_checkpoints_of_another_architecture(tmp_path):
    others = {
        "vit": ViTForImageClassification(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)),
        "resnet": ResNetForImageClassification(ResNetConfig(depths=[1] * 4, embedding_size=8, hidden_sizes=[8] * 4)),
    }
    for model_type, other in others.items():
        other.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"model_type of the checkpoint must be 'hf_vit', got '{model_type}'"):
            HfViTForImageClassification.from_pretrained(tmp_path)
        assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is type(other)


# --- odd, but right --------------------------------------------------------------------------------------------------


def test_an_empty_batch_gives_empty_logits(model, images):
    for dtype in (torch.float32, torch.bfloat16):
        outputs = model.to(dtype)(images(model, 0))
        assert outputs.logits.shape == (0, 5) and outputs.logits.dtype == dtype
    assert model.vit(images(model, 0)).last_hidden_state.shape[0] == 0


def test_an_image_of_one_patch(tiny_model, architecture, images):
    patch_size = architecture.get("patch_size", 4)
    model = tiny_model(**{**architecture, "image_size": patch_size})
    outputs = model(images(model, 1), labels=torch.tensor([2]), output_attentions=True)
    assert outputs.logits.shape == (1, 5) and outputs.loss.isfinite()
    assert outputs.attentions[-1].shape[-1] == model.config.num_prefix_tokens + 1
    larger = images(model, 1, 3 * model.config.patch_shape[0], 2 * model.config.patch_shape[1])
    assert model(larger).logits.isfinite().all()


def test_images_of_other_channels(tiny_model):
    model = tiny_model(num_channels=1)
    assert model(torch.zeros(1, 1, 16, 16)).logits.shape == (1, 5)
