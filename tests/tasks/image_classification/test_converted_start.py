"""Training starts from a converted checkpoint, so that all options of ours apply, and finds it again."""

import pytest
import timm
import torch
from classifiers import save
from huggingface_hub import constants
from random_weights import randomise
from timm.models import save_for_hf
from training_runs import TINY, finish
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_vit import HfViTForImageClassification
from hf_vit.conversion import cached
from hf_vit.tasks.image_classification.data import class_mapping
from hf_vit.tasks.image_classification.models import ModelArguments, build_model, build_processor

CLASSES = class_mapping(["ant", "bee", "cow"])
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def peer(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    model = randomise(timm.create_model("vit_tiny_patch16_224", **SIZES))
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "squash", "crop_pct": 1.0}
    save_for_hf(model, tmp_path / "peer", model_args=SIZES)
    return model


def test_a_converted_checkpoint_takes_our_options(peer, tmp_path, monkeypatch):
    options = {"config_overrides": {"pooling": "mean"}, "image_size": [48]}
    arguments = ModelArguments(model_name_or_path=str(tmp_path / "peer"), convert=True, **options)
    model = build_model(arguments, CLASSES)
    assert type(model) is HfViTForImageClassification and model.config.pooling == "mean"
    assert model.config.num_labels == 3 and model.config.image_shape == (48, 48)
    assert torch.equal(model.vit.layers[0].mlp.fc1.weight, peer.blocks[0].mlp.fc1.weight)
    processor = build_processor(arguments, model)
    assert processor.size["height"] == 48 and list(processor.image_mean) == list(peer.pretrained_cfg["mean"])
    converted = []
    monkeypatch.setattr(cached, "convert", lambda *args: converted.append(args))
    build_model(arguments, CLASSES)
    assert not converted  # found again
    (tmp_path / "peer" / "config.json").touch()
    with pytest.raises(OSError):
        build_model(arguments, CLASSES)
    assert len(converted) == 1  # its files are others now


def test_without_it_an_option_of_ours_names_it(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    arguments = {"model_name_or_path": str(tmp_path / "vit"), "config_overrides": {"pooling": "mean"}}
    with pytest.raises(ValueError, match="vit has no field 'pooling'; with --convert the model becomes a hf_vit"):
        build_model(ModelArguments(**arguments), CLASSES)
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"got the file .*weights\.pth.*; with --convert a file"):
        build_model(ModelArguments(model_name_or_path=str(tmp_path / "weights.pth")), CLASSES)
    with pytest.raises(ValueError, match="--convert goes with --model_name_or_path"):
        ModelArguments(convert=True)


def test_without_it_a_folder_of_timm_keeps_its_class(peer, tmp_path):
    model = build_model(ModelArguments(model_name_or_path=str(tmp_path / "peer")), CLASSES)
    assert model.config.model_type == "timm_wrapper" and model.config.num_labels == 3
    assert torch.equal(model.timm_model.blocks[0].mlp.fc1.weight, peer.blocks[0].mlp.fc1.weight)
    assert model.timm_model.head.weight.shape == (3, 24)


def test_a_checkpoint_of_timm_is_fine_tuned_under_a_teacher(peer, tmp_path):
    teacher, _ = save(tmp_path / "teacher", names=[str(digit) for digit in range(10)])
    flags = [*TINY, "--model_name_or_path", tmp_path / "peer", "--convert", "--teacher", teacher]
    flags = [flag for flag in flags if not str(flag).startswith(("--config_overrides", "--image_size"))]
    flags += ["--config_overrides=pooling=mean", "--num_train_epochs=1", "--output_dir", tmp_path / "run"]
    finish(*flags, environment={"HF_HOME": str(tmp_path / "home")})
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(trained) is HfViTForImageClassification and trained.config.pooling == "mean"
