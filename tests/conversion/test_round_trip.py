"""Weights from timm or transformers go back to it, weight for weight; and random configurations of them do."""

import pytest
import timm
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_weights import randomise
from timm.layers import Mlp, SwiGLUPacked
from timm.models import save_for_hf
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from translators import BART, MARIAN, T5, batch, make_tokenizer
from typer.testing import CliRunner

import hf_vit
from hf_vit.cli import app
from hf_vit.conversion.convert import convert
from hf_vit.conversion.models import from_peer, to_peer

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}


def assert_same_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@st.composite
def timm_options(draw):
    pooling = draw(st.sampled_from(["token", "avg", "max", "map"]))
    options = {
        "img_size": draw(st.sampled_from([16, 32, (16, 24)])),
        "patch_size": draw(st.sampled_from([4, 8, (8, 4)])),
        "num_heads": draw(st.sampled_from([1, 2, 4])),
        "depth": draw(st.integers(1, 2)),
        "mlp_ratio": draw(st.sampled_from([1.0, 2.5, 4.0])),
        "in_chans": draw(st.sampled_from([1, 3, 4])),
        "num_classes": draw(st.sampled_from([0, 3])),
        "class_token": pooling == "token" or draw(st.booleans()),
        "init_values": draw(st.sampled_from([None, 0.1])),
        "act_layer": draw(st.sampled_from(["gelu", "relu", "silu", "gelu_tanh"])),
        "pos_embed": draw(st.sampled_from(["learn", "none"])),
        "reg_tokens": draw(st.integers(0, 2)),
        "norm_layer": draw(st.sampled_from([None, "rmsnorm"])),
        # timm pools with an MLP of its own.
        "mlp_layer": Mlp if pooling == "map" else draw(st.sampled_from([Mlp, SwiGLUPacked])),
        **{name: draw(st.booleans()) for name in ("qkv_bias", "qk_norm", "no_embed_class", "pre_norm", "proj_bias")},
        **{name: draw(st.booleans()) for name in ("scale_attn_norm", "scale_mlp_norm", "final_norm")},
    }
    if options["mlp_layer"] is not Mlp:
        options["act_layer"] = draw(st.sampled_from(["gelu", "silu", "gelu_tanh"]))
    return {**options, "embed_dim": 16, "global_pool": pooling}


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(timm_options())
def test_any_vision_transformer_of_timm_and_back(options):
    peer = randomise(timm.models.VisionTransformer(**options))
    ours = from_peer(peer)
    pixel_values = torch.randn(2, options["in_chans"], *peer.patch_embed.img_size)
    with torch.no_grad():
        outputs, expected = ours(pixel_values), peer(pixel_values)
    got = outputs.logits if options["num_classes"] else outputs.pooler_output
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    back = to_peer(ours, "timm")
    assert_same_weights(back, peer)
    with torch.no_grad():
        assert torch.equal(back(pixel_values), expected)


@st.composite
def vit_options(draw):
    return {
        "hidden_size": 16,
        "intermediate_size": draw(st.sampled_from([8, 40])),
        "num_attention_heads": draw(st.sampled_from([1, 2, 4])),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "image_size": draw(st.sampled_from([16, [16, 32]])),
        "patch_size": draw(st.sampled_from([4, 8])),
        "num_channels": draw(st.sampled_from([1, 3])),
        "num_labels": draw(st.integers(1, 4)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "gelu_pytorch_tanh"])),
        "qkv_bias": draw(st.booleans()),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-6])),
    }


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["ViT", "DeiT", "DeiT with teacher"]), vit_options())
def test_any_vit_and_deit_of_transformers_and_back(name, options):
    family, _, has_teacher = name.partition(" ")
    model_class = getattr(transformers, f"{family}ForImageClassification" + ("WithTeacher" if has_teacher else ""))
    peer = randomise(model_class(getattr(transformers, f"{family}Config")(**options)))
    ours = from_peer(peer)
    size = options["image_size"] if isinstance(options["image_size"], list) else [options["image_size"]] * 2
    pixel_values = torch.randn(2, options["num_channels"], *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixel_values).logits, peer(pixel_values).logits, atol=1e-5, rtol=1e-5)
    back = to_peer(ours, "transformers")
    assert type(back) is model_class
    assert_same_weights(back, peer)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_a_folder_of_timm_and_back(tmp_path, pooling):
    peer = randomise(timm.create_model("vit_tiny_patch16_224", **SIZES, global_pool=pooling))
    form = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "border", "interpolation": "bicubic"}
    peer.pretrained_cfg = {**peer.pretrained_cfg, **form}
    save_for_hf(
        peer,
        tmp_path / "peer",
        model_config={"label_names": ["cat", "dog", "owl"]},
        model_args={**SIZES, "global_pool": pooling},
    )
    convert(tmp_path / "peer", tmp_path / "ours")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "timm"])
    assert result.exit_code == 0, result.output
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    assert_same_weights(back, peer)
    found = timm.data.resolve_model_data_config(back)
    expected = timm.data.resolve_model_data_config(peer)
    assert all(found[name] == expected[name] for name in form)
    assert back.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "back")  # which calls timm
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(pixel_values).logits, peer(pixel_values))


def test_a_folder_of_transformers_and_back(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    peer = randomise(transformers.ViTForImageClassification(config))
    peer.save_pretrained(tmp_path / "peer")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "peer")
    convert(tmp_path / "peer", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "back")
    assert type(back) is type(peer)
    assert_same_weights(back, peer)
    photo = Image.new("RGB", (40, 30), (200, 10, 90))
    pixels = [
        AutoImageProcessor.from_pretrained(tmp_path / name)(photo, return_tensors="pt")["pixel_values"]
        for name in ("peer", "back")
    ]
    assert torch.equal(*pixels)
    assert not list((tmp_path / "back").glob("*.py"))


def test_from_timm_to_transformers_at_once(tmp_path):
    """Of a model without a counterpart nothing is written."""
    for pooling in ("token", "avg"):
        peer = timm.create_model("vit_tiny_patch16_224", **SIZES, global_pool=pooling)
        save_for_hf(peer, tmp_path / pooling, model_args={**SIZES, "global_pool": pooling})
    convert(tmp_path / "token", tmp_path / "vit", to="transformers")
    assert AutoConfig.from_pretrained(tmp_path / "vit").model_type == "vit"
    with pytest.raises(ValueError, match=r"ViTForImageClassification: pooling.* must be 'cls', got 'mean'"):
        convert(tmp_path / "avg", tmp_path / "none", to="transformers")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["marian", "t5", "bart", "mbart"])
def test_translators_and_back(tmp_path, name):
    classes = {"marian": (transformers.MarianMTModel, transformers.MarianConfig, MARIAN)}
    classes["t5"] = (transformers.T5ForConditionalGeneration, transformers.T5Config, T5)
    classes["bart"] = (transformers.BartForConditionalGeneration, transformers.BartConfig, BART)
    classes["mbart"] = (transformers.MBartForConditionalGeneration, transformers.MBartConfig, BART)
    model_class, config_class, sizes = classes[name]
    peer = randomise(model_class(config_class(**sizes)))
    peer.save_pretrained(tmp_path / "peer")
    make_tokenizer().save_pretrained(tmp_path / "peer")
    convert(tmp_path / "peer", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back")
    assert type(back) is model_class
    with torch.no_grad():
        torch.testing.assert_close(back(**batch()).logits, peer(**batch()).logits, atol=1e-5, rtol=1e-5)
    if name != "t5":  # its scale of the scores is folded into the weights, to the last bit but one
        assert_same_weights(back, peer)
    inputs = {key: value for key, value in batch().items() if key != "decoder_input_ids"}
    assert torch.equal(back.generate(**inputs, max_new_tokens=8), peer.generate(**inputs, max_new_tokens=8))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("ein zwei")["input_ids"] == make_tokenizer()("ein zwei")["input_ids"]


def test_a_translator_of_our_own_becomes_a_marian(tmp_path):
    sizes = {f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = hf_vit.HfTransformerConfig(vocab_size=60, d_model=16, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes)
    ours = randomise(hf_vit.HfTransformerForConditionalGeneration(config))
    marian = to_peer(ours, "transformers")
    with torch.no_grad():
        torch.testing.assert_close(marian(**batch()).logits, ours(**batch()).logits, atol=1e-5, rtol=1e-5)
    config.position_embedding = "rope"
    with pytest.raises(ValueError, match="MarianMTModel: position_embedding must be 'sinusoidal', got 'rope'"):
        to_peer(hf_vit.HfTransformerForConditionalGeneration(config), "transformers")
