"""The same weights give the same logits as in timm and in transformers."""

import pytest
import timm
import torch
import transformers
from random_weights import randomise
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models import vision_transformer
from timm.models.deit import VisionTransformerDistilled

from hf_vit.conversion.models import from_peer

TIMM_SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5, "img_size": 32, "patch_size": 8}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def images(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
        {"global_pool": "max", "reg_tokens": 2},
        {"global_pool": "map", "class_token": False},
        {"global_pool": "map", "class_token": True, "reg_tokens": 3, "no_embed_class": True},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"reg_tokens": 4, "qk_norm": True, "init_values": 0.1},
        {"global_pool": "avg", "pos_embed": "none", "qk_norm": True},
        {"img_size": (16, 32), "patch_size": (4, 8)},
        {"act_layer": "relu"},
        {"act_layer": "gelu_tanh", "global_pool": "map"},
        {"act_layer": "quick_gelu", "pre_norm": True},
        {"final_norm": False, "proj_bias": False},
        {"mlp_layer": SwiGLUPacked, "act_layer": "silu", "norm_layer": "rmsnorm", "qk_norm": True},
        {"mlp_layer": SwiGLU, "scale_attn_norm": True, "scale_mlp_norm": True},
    ],
    ids=str,
)
def test_logits_equal_those_of_timm(options):
    peer = randomise(timm.models.VisionTransformer(**{**TIMM_SIZES, **options}))
    pixel_values = images(*peer.patch_embed.img_size)
    with torch.no_grad():
        expected, got = peer(pixel_values), from_peer(peer)(pixel_values).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_both_heads_equal_those_of_timms_distilled_deit():
    peer = randomise(VisionTransformerDistilled(**TIMM_SIZES))
    peer.set_distilled_training(True)
    with torch.no_grad():
        peer.train()  # the one mode in which timm returns both heads
        class_logits, distillation_logits = peer(images())
        outputs = from_peer(peer)(images())
    torch.testing.assert_close(outputs.class_logits, class_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.distillation_logits, distillation_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_logits_equal_those_of_transformers(name, qkv_bias):
    config = getattr(transformers, f"{name}Config")(
        **SIZES, image_size=32, patch_size=8, num_labels=5, qkv_bias=qkv_bias, layer_norm_eps=1e-6
    )
    peer = randomise(getattr(transformers, f"{name}ForImageClassification")(config))
    with torch.no_grad():
        expected = peer(images(), output_hidden_states=True, output_attentions=False)
        got = from_peer(peer)(images(), output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert len(got.hidden_states) == len(expected.hidden_states) == 3
    for ours, theirs in zip(got.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_heads_and_attentions_equal_those_of_deit_with_teacher():
    config = transformers.DeiTConfig(**SIZES, image_size=32, patch_size=8, num_labels=5)
    peer = randomise(
        transformers.DeiTForImageClassificationWithTeacher._from_config(config, attn_implementation="eager")
    )
    ours = from_peer(peer)
    with torch.no_grad():
        expected, got = peer(images(), output_attentions=True), ours(images(), output_attentions=True)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.class_logits, expected.cls_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.distillation_logits, expected.distillation_logits, atol=1e-5, rtol=1e-5)
    for weights, peer_weights in zip(got.attentions, expected.attentions):
        torch.testing.assert_close(weights, peer_weights, atol=1e-5, rtol=1e-5)


def test_larger_images_get_the_positions_that_transformers_interpolates():
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=5)
    peer = randomise(transformers.ViTForImageClassification(config))
    with torch.no_grad():
        expected = peer(images(64, 48), interpolate_pos_encoding=True).logits
        got = from_peer(peer)(images(64, 48)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_smaller_images_get_the_antialiased_positions_of_timm():
    peer = randomise(timm.models.VisionTransformer(**{**TIMM_SIZES, "patch_size": 4}, dynamic_img_size=True))
    with torch.no_grad():
        expected, got = peer(images(16, 24)), from_peer(peer)(images(16, 24)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_foreign_models_are_refused():
    resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(depths=[1, 1, 1, 1]))
    for other in (resnet, timm.create_model("resnet18")):
        with pytest.raises(ValueError, match=r"one of timm .*VisionTransformer.*; of transformers .*, got ResN"):
            from_peer(other)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"global_pool": ""}, "global_pool must be one of token, avg, max, map, got ''"),
        ({"act_layer": "tanh"}, "act_layer must be one of GELU, .*, got 'Tanh'"),
        ({"block_fn": vision_transformer.ResPostBlock}, "block_fn must be one of Block, got 'ResPostBlock'"),
        ({"pool_include_prefix": True, "global_pool": "avg"}, "pool_include_prefix must be one of False, got True"),
        ({"attn_layer": "diff"}, "attn_layer must be one of Attention, got 'DiffAttention'"),
        ({"embed_norm_layer": "layernorm"}, "embed_norm_layer must be one of Identity, got 'LayerNorm'"),
        ({"mlp_layer": GluMlp, "global_pool": "map"}, "mlp_layer must be one of Mlp, got 'GluMlp'"),
        ({"mlp_layer": GluMlp}, "gate_last must be one of False, got True"),
    ],
    ids=str,
)
def test_what_ours_lacks_is_refused(options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_peer(timm.models.VisionTransformer(**TIMM_SIZES, **options))


def test_rates_are_carried_over():
    rates = {"attn_drop_rate": 0.1, "proj_drop_rate": 0.2, "drop_path_rate": 0.3}
    config = from_peer(timm.models.VisionTransformer(**TIMM_SIZES, **rates)).config
    assert config.attention_probs_dropout_prob == pytest.approx(0.1)
    assert config.hidden_dropout_prob == pytest.approx(0.2)
    assert config.drop_path_rate == pytest.approx(0.3)
