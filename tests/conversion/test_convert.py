"""Checkpoints of timm and transformers become folders that load as ours and give the same."""

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from translators import MARIAN, T5, batch, make_tokenizer, randomise
from typer.testing import CliRunner

import hf_vit
from hf_vit.cli import app
from hf_vit.conversion.convert import convert

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "id2label": {0: "cat", 1: "dog", 2: "owl"},
}
IMAGE_PEERS = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig),
    "deit": (transformers.DeiTForImageClassification, transformers.DeiTConfig),
    "distilled deit": (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig),
}
TEXT_PEERS = {
    "marian": (transformers.MarianMTModel, transformers.MarianConfig, MARIAN),
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, T5),
}


@pytest.mark.parametrize(("model_class", "config_class"), IMAGE_PEERS.values(), ids=IMAGE_PEERS)
def test_image_classifiers_of_transformers(tmp_path, model_class, config_class):
    peer = randomise(model_class(config_class(**VIT)))
    peer.save_pretrained(tmp_path / "peer")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3).save_pretrained(
        tmp_path / "peer"
    )
    ours = transformers.AutoModelForImageClassification.from_pretrained(convert(tmp_path / "peer", tmp_path / "ours"))
    assert type(ours) is hf_vit.HfViTForImageClassification and ours.config.id2label == VIT["id2label"]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, peer(images).logits, atol=1e-5, rtol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert processor.do_convert_rgb and list(processor.image_mean) == [0.4] * 3
    assert (tmp_path / "ours" / "modeling_hf_vit.py").is_file()


def test_vision_transformers_of_timm(tmp_path):
    sizes = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}
    peer = randomise(timm.create_model("vit_tiny_patch16_224", **sizes))
    peer.pretrained_cfg = {**peer.pretrained_cfg, "input_size": (3, 32, 32)}
    labels = {"label_names": ["cat", "dog", "owl"]}
    save_for_hf(peer, tmp_path / "peer", model_config=labels, model_args=sizes)
    ours = transformers.AutoModelForImageClassification.from_pretrained(convert(tmp_path / "peer", tmp_path / "ours"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, peer(images), atol=1e-5, rtol=1e-5)
    assert ours.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert dict(processor.size) == {"height": 32, "width": 32}
    assert list(processor.image_mean) == list(peer.pretrained_cfg["mean"])


@pytest.mark.parametrize(("model_class", "config_class", "sizes"), TEXT_PEERS.values(), ids=TEXT_PEERS)
def test_translators_of_transformers(tmp_path, model_class, config_class, sizes):
    peer = randomise(model_class(config_class(**sizes)))
    peer.save_pretrained(tmp_path / "peer")
    make_tokenizer().save_pretrained(tmp_path / "peer")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "peer"), str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    ours = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is hf_vit.HfTransformerForConditionalGeneration
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch()).logits, peer(**batch()).logits, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("ein zwei")["input_ids"] == make_tokenizer()("ein zwei")["input_ids"]


def test_what_cannot_be_converted_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="folder must be a new or an empty one"):
        convert(tmp_path / "peer", tmp_path / "full")
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"source must be of timm's VisionTransformer, .* got 'BertModel'"):
        convert(tmp_path / "bert", tmp_path / "ours")
    transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).save_pretrained(tmp_path / "no tokenizer")
    with pytest.raises(ValueError, match="source must have a tokenizer beside the model"):
        convert(tmp_path / "no tokenizer", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
