"""Checkpoints of timm and transformers become folders that load as ours and give the same."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from random_weights import randomise
from timm.models import save_for_hf
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from translators import MARIAN, T5, batch, make_tokenizer
from typer.testing import CliRunner

import hf_vit
from hf_vit.cli import app
from hf_vit.conversion.convert import convert
from hf_vit.conversion.processors import timm_processor

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


# --- timm's evaluation transform -------------------------------------------------------------------------------------

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INTERPOLATIONS = ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
# (width, height): smaller, larger, and oblong both ways, where the middle of what sticks out is half a pixel.
PHOTOS = [(32, 32), (50, 50), (20, 37), (90, 61), (61, 90), (133, 40), (300, 225)]


def photo(size, mode="RGB"):
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def difference(processor, form, image):
    """Largest difference from timm's evaluation transform, in grey levels."""
    expected = timm.data.create_transform(**form)(image)
    got = processor(image, return_tensors="pt")["pixel_values"][0]
    assert got.shape == expected.shape == form["input_size"]
    return ((got - expected) * torch.tensor(form["std"])[:, None, None] * 255).abs().max().item()


@pytest.mark.parametrize("size", [(32, 32), (48, 32)], ids=str)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_those_of_timms_evaluation(tmp_path, interpolation, crop_mode, size):
    for crop_pct in (1.0, 0.9, 0.875):
        form = {"input_size": (3, *size), "interpolation": interpolation, "crop_mode": crop_mode, "crop_pct": crop_pct}
        timm_processor({**form, **IMAGENET}).save_pretrained(tmp_path)
        for backend in ("torchvision", "pil"):
            processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
            is_exact = processor.backend == "pil"
            assert is_exact or (interpolation, crop_mode, crop_pct) == ("bilinear", "squash", 1.0)
            for shape in PHOTOS:
                found = difference(processor, {**form, **IMAGENET}, photo(shape))
                assert found < (1e-3 if is_exact else 1.01), (crop_pct, backend, shape)


def test_pictures_of_any_kind_and_several_at_once():
    form = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_mode": "border", "crop_pct": 1.0, **IMAGENET}
    processor = timm_processor(form)
    pictures = [photo((60, 41)), photo((30, 70), "L"), photo((25, 25), "P")]
    expected = torch.stack([timm.data.create_transform(**form)(picture.convert("RGB")) for picture in pictures])
    got = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    levels = [np.array(picture.convert("RGB")) for picture in pictures]
    torch.testing.assert_close(processor(levels, return_tensors="pt")["pixel_values"], got)
    unscaled = processor([level / 255 for level in levels], do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(unscaled, got, atol=0.02, rtol=0)


def test_pictures_of_one_channel():
    form = {"input_size": (1, 28, 28), "interpolation": "bilinear", "crop_mode": "border", "crop_pct": 0.9}
    form |= {"mean": (0.13,), "std": (0.3,)}
    assert difference(timm_processor(form), form, photo((50, 33), "L")) < 1e-3


def test_random_interpolation_is_evaluated_by_one(tmp_path):
    """As timm does where it evaluates in training; its own evaluation draws, or fails."""
    form = {"input_size": (3, 32, 32), "interpolation": "random", "crop_mode": "center", "crop_pct": 0.9, **IMAGENET}
    assert difference(timm_processor(form), {**form, "interpolation": "bilinear"}, photo((90, 61))) < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_mode": "stretch"}, "crop_mode must be one of center, squash, border, got 'stretch'"),
        ({"crop_pct": 0.0}, r"crop_pct must be above 0, got 0\.0"),
        ({"size": {"shortest_edge": 32}}, "size must have height and width, got"),
    ],
    ids=str,
)
def test_processors_refuse_what_they_do_not_know(fields, message):
    with pytest.raises(ValueError, match=message):
        hf_vit.HfViTImageProcessor(**fields)
    with pytest.raises(ValueError, match=message):
        hf_vit.HfViTImageProcessor()(photo((32, 32)), **fields)


def save_timm(folder, sizes, **pretrained_cfg):
    peer = randomise(timm.create_model("vit_tiny_patch16_224", **sizes))
    peer.pretrained_cfg = {**peer.pretrained_cfg, **pretrained_cfg}
    save_for_hf(peer, folder, model_args=sizes)
    return peer.eval()


SIZES = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos", "random"])
def test_logits_of_photographs_are_those_of_timm(tmp_path, crop_mode, interpolation):
    form = {"crop_pct": 0.9, "crop_mode": crop_mode, "interpolation": interpolation}
    peer = save_timm(tmp_path / "peer", SIZES, input_size=(3, 32, 32), **form)
    convert(tmp_path / "peer", tmp_path / "ours")
    if interpolation == "random":
        form["interpolation"] = "bilinear"
    evaluation = {**timm.data.resolve_model_data_config(peer), **form}
    transform = timm.data.create_transform(**evaluation)
    ours = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    for shape in PHOTOS:
        with torch.no_grad():
            expected = peer(transform(photo(shape))[None])
            got = ours(**processor(photo(shape), return_tensors="pt")).logits
        assert (got - expected).norm() < 1e-3 * expected.norm()


def test_a_timm_model_made_for_another_size_than_its_checkpoints(tmp_path):
    save_timm(tmp_path / "peer", SIZES)  # the pretrained configuration still says 224
    convert(tmp_path / "peer", tmp_path / "ours")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert dict(processor.size) == {"height": 32, "width": 32} and processor.crop_pct == 0.9


def test_timm_checkpoints_that_contradict_themselves_are_refused(tmp_path):
    form = {"input_size": (1, 32, 32), "interpolation": "bilinear", "crop_mode": "center", "crop_pct": 0.9, **IMAGENET}
    with pytest.raises(ValueError, match="mean and std of the checkpoint must have a value for each of 1 channels"):
        timm_processor(form)
    save_timm(tmp_path / "names", SIZES)
    config = json.loads((tmp_path / "names" / "config.json").read_text())
    config["pretrained_cfg"]["label_names"] = ["cat"]
    (tmp_path / "names" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="label_names of the checkpoint must name its 3 classes, got 1 names"):
        convert(tmp_path / "names", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- text ------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"must be of timm or of transformers' .*, DeiTModel,.*, got 'BertModel'"):
        convert(tmp_path / "bert", tmp_path / "ours")
    transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).save_pretrained(tmp_path / "no tokenizer")
    with pytest.raises(ValueError, match="source must have a tokenizer beside the model"):
        convert(tmp_path / "no tokenizer", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
