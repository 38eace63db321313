"""Files that are damaged, foreign or not whole: a clear error, and nothing is written."""

import argparse
import json
import os
import pickle

import pytest
import timm
import torch
import transformers
from random_weights import randomise
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from typer.testing import CliRunner

from hf_vit.cli import app
from hf_vit.conversion.convert import convert

SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 3}


@pytest.fixture
def peer(tmp_path):
    model = randomise(timm.create_model("vit_tiny_patch16_224", **SIZES))
    save_for_hf(model, tmp_path / "peer", model_args=SIZES, safe_serialization=True)
    return model


@pytest.fixture
def refused(tmp_path):
    def check(source, message, **options):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / source, tmp_path / "ours", **options)
        assert not (tmp_path / "ours").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]

    return check


def edit(tmp_path, change):
    path = tmp_path / "peer" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_missing_unused_and_misshapen_weights_are_listed(peer, tmp_path, refused):
    def change(weights):
        del weights["norm.weight"], weights["blocks.0.mlp.fc1.bias"]
        weights["extra.weight"] = torch.zeros(1)
        weights["head.weight"] = torch.zeros(5, 64)

    edit(tmp_path, change)
    refused(
        "peer",
        r"missing: blocks.0.mlp.fc1.bias, norm.weight; unused: extra.weight; "
        r"of another shape: head.weight \(5, 64\) for \(3, 64\); --allow-partial takes what fits",
    )
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "peer"), str(tmp_path / "ours"), "--allow-partial"])
    assert result.exit_code == 0, result.output
    ours = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(ours.vit.layers[0].mlp.fc2.weight, peer.blocks[0].mlp.fc2.weight)
    assert ours.classifier.weight.shape == (3, 64) and ours.classifier.weight.isfinite().all()


def test_transformers_checkpoints_that_are_not_whole(tmp_path, refused):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "peer")
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "peer")

    def change(weights):
        del weights["vit.layernorm.weight"]
        weights["extra"] = torch.zeros(1)

    edit(tmp_path, change)
    refused("peer", "missing: vit.layernorm.weight; unused: extra")
    (tmp_path / "peer" / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "peer" / "config.json").read_text()), "num_attention_heads": 3})
    )
    refused("peer", "num_attention_heads|hidden_size")


def test_damaged_files(peer, tmp_path, refused):
    path = tmp_path / "peer" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("peer", "cannot be read")
    path.write_bytes(b"no weights at all")
    refused("peer", "cannot be read")


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_files_of_weights_alone(peer, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": peer.state_dict()}, "deit.pth")
    ours = transformers.AutoModelForImageClassification.from_pretrained(convert("deit.pth", tmp_path / "deit"))
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixel_values).logits, peer(pixel_values), atol=1e-5, rtol=1e-5)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"model": Harm()}))
    refused("bad.pth", "cannot be read")
    assert not (tmp_path / "harm").exists()
    torch.save({"epoch": 3}, "facts.pth")
    refused("facts.pth", "must hold named tensors alone, found 'epoch', a int")
    torch.save({"module.norm.weight": torch.ones(3), "norm.weight": torch.zeros(3)}, tmp_path / "twice.pth")
    refused("twice.pth", "holds 'module.norm.weight' and 'norm.weight'")
    torch.save([1], "list.pth")
    refused("list.pth", "must hold named tensors, found list")
    torch.save({"layer.weight": torch.zeros(1)}, "other.pth")
    refused("other.pth", "are of no architecture that is known here")


def own_names(name):
    """What DeiT's repository calls a weight, and what it is called where the model ran in several processes."""
    for i in (1, 2):
        name = name.replace(f".ls{i}.gamma", f".gamma_{i}")
    return f"module.{name}"


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
)
def test_files_of_deits_repository(tmp_path, name):
    """Of a run as well, with what it was started with."""
    sizes = {"img_size": 64, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 3}
    peer = randomise(timm.create_model(name, **sizes))
    weights = {own_names(name): value for name, value in peer.state_dict().items()}
    torch.save({"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "deit.pth")
    ours = transformers.AutoModelForImageClassification.from_pretrained(
        convert(tmp_path / "deit.pth", tmp_path / "ours")
    )
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixel_values).logits, peer(pixel_values), atol=1e-5, rtol=1e-5)


def test_foreign_architectures_and_names(tmp_path, refused):
    save_for_hf(timm.create_model("resnet18", num_classes=2), tmp_path / "cnn", model_args={"num_classes": 2})
    refused("cnn", "must be one of timm .*VisionTransformer.*, got ResNet")
    config = {"architecture": "vit_tiny_patch16_225", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text(json.dumps(config))
    refused("unknown", "vit_tiny_patch16_225.*nearest: vit_tiny_patch16_224")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {"num_heads": 7}}
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
    refused("unknown", "timm cannot make")


def test_words_that_do_not_fit(peer, tmp_path, refused):
    refused("peer", "to must be one of timm, transformers, got 'onnx'", to="onnx")
    arguments = ["convert", str(tmp_path / "peer"), str(tmp_path / "ours"), "--image-size", "12y"]
    result = CliRunner().invoke(app, arguments)
    assert "--image-size must be a number of pixels or HEIGHTxWIDTH, got '12y'" in str(result.exception)
    convert(tmp_path / "peer", tmp_path / "own")
    refused("own", "source must be a model of timm or transformers, or be changed")
