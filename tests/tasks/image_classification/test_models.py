"""Models and processors from scratch and from any checkpoint, at any size, with parts frozen."""

import pytest
import torch
from random_weights import randomise
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfViTConfig, HfViTForImageClassification, HfViTImageProcessor
from hf_vit.config import Options
from hf_vit.tasks.image_classification.data import class_mapping
from hf_vit.tasks.image_classification.models import (
    ModelArguments,
    build_model,
    build_processor,
    head_parameters,
)
from hf_vit.trainer.train_mode import train_mode
from hf_vit.vision.processors import InputFormat

CLASSES = class_mapping(["ant", "bee", "cow"])
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "image_size": 32, "patch_size": 2, "window_size": 4}
TIMM = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 24, "img_size": 32}}


def build(**arguments):
    arguments = ModelArguments(**arguments)
    model = build_model(arguments, CLASSES)
    return model, build_processor(arguments, model)


@pytest.fixture(params=["ours", "vit", "deit", "beit", "swin", "swin_absolute", "resnet", "timm"])
def checkpoint(request, tmp_path):
    """A saved model with 5 classes, and the model."""
    model = {
        "ours": lambda: HfViTForImageClassification(HfViTConfig(**VIT, num_labels=5)),
        "vit": lambda: ViTForImageClassification(ViTConfig(**VIT, num_labels=5)),
        "deit": lambda: DeiTForImageClassification(DeiTConfig(**VIT, num_labels=5)),
        "beit": lambda: BeitForImageClassification(BeitConfig(**VIT, num_labels=5, use_relative_position_bias=True)),
        "swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, num_labels=5)),
        "swin_absolute": lambda: SwinForImageClassification(
            SwinConfig(**SWIN, num_labels=5, use_absolute_embeddings=True)
        ),
        "resnet": lambda: ResNetForImageClassification(ResNetConfig(**RESNET, num_labels=5)),
        "timm": lambda: TimmWrapperForImageClassification(TimmWrapperConfig(**TIMM, num_labels=5)),
    }[request.param]()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3).save_pretrained(tmp_path)
    return str(tmp_path), model


def test_any_checkpoint_gets_a_new_head_and_keeps_its_body(checkpoint):
    path, saved = checkpoint
    model, processor = build(model_name_or_path=path)
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cow"}
    assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)
    assert InputFormat.of(processor)[:2] == ((32, 32), [0.1] * 3)
    head = {id(parameter) for parameter in head_parameters(model)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in head]
    assert names and all("classifier" in name or "head" in name for name in names)
    for name, parameter in model.named_parameters():
        if name not in names:
            assert torch.equal(parameter, saved.get_parameter(name)), name


def test_any_checkpoint_goes_on_at_another_size_and_is_saved_so(checkpoint, tmp_path):
    path, saved = checkpoint
    model, processor = build(model_name_or_path=path, image_size=[48])
    assert InputFormat.of(processor).size == (48, 48)
    pixels = torch.nn.functional.interpolate(torch.rand(2, 3, 32, 32), 48)
    logits = model.eval()(pixel_values=pixels).logits
    for name, parameter in model.named_parameters():  # positions alone differ
        if parameter.shape == saved.get_parameter(name).shape:
            assert torch.equal(parameter, saved.get_parameter(name)), name
        else:
            assert any(word in name for word in ("position", "pos_embed", "classifier", "head"))
    model.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again(pixel_values=pixels).logits, logits)


def test_weights_of_another_architecture_are_refused(tmp_path):
    ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another architecture: .*weight"):
        build(model_name_or_path=str(tmp_path), config_overrides={"hidden_size": 32})


@pytest.mark.parametrize(
    ("arguments", "kind", "size"),
    [
        ({"config_overrides": VIT}, HfViTForImageClassification, (32, 32)),
        ({"config_name": "vit_tiny_patch16_64"}, HfViTForImageClassification, (64, 64)),
        ({"config_overrides": VIT, "image_size": [16, 24]}, HfViTForImageClassification, (16, 24)),
        ({"model_type": "vit", "config_overrides": VIT, "image_size": [16]}, ViTForImageClassification, (16, 16)),
        (
            {"model_type": "resnet", "config_overrides": RESNET, "image_size": [9]},
            ResNetForImageClassification,
            (9, 9),
        ),
    ],
    ids=["ours", "variant", "oblong", "vit", "resnet"],
)
def test_from_scratch(arguments, kind, size):
    model, processor = build(**arguments)
    assert type(model) is kind and InputFormat.of(processor).size == size
    assert model(pixel_values=torch.zeros(1, 3, *size)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config_overrides": {"hiden_size": 8}}, ["'hiden_size'", "'hidden_size'"]),
        ({"config_name": "vit_gigantic_patch16_224"}, ["vit_gigantic_patch16_224", "vit_tiny_patch16_224"]),
        ({"config_overrides": {**VIT, "pooling": "median"}}, ["pooling", "median"]),
        ({"config_overrides": {**VIT, "hidden_size": 17}}, ["hidden_size"]),
        ({"config_overrides": {**VIT, "problem_type": "regression"}}, ["problem_type", "exclude each other"]),
    ],
)
def test_models_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(ValueError) as refusal:
        build(**arguments)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("train_only", ["head", "attention"])
def test_only_what_is_asked_for_trains(checkpoint, train_only):
    path, saved = checkpoint
    if train_only == "attention" and "resnet" in saved.config.model_type:
        with pytest.raises(ValueError, match="no attention"):
            build(model_name_or_path=path, train_only=train_only)
        return
    model, _ = build(model_name_or_path=path, train_only=train_only)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    words = ("classifier", "head") if train_only == "head" else ("classifier", "head", "attention", "attn")
    assert trainable and all(any(word in name for word in words) for name in trainable)
    assert len(trainable) == 2 or train_only == "attention"
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_mode(model)
    model(pixel_values=torch.randn(4, 3, 32, 32)).logits.sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    if train_only == "head":
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_centre_crop_is_taken_over_from_the_checkpoint_and_by_flag(tmp_path):
    ResNetForImageClassification(ResNetConfig(**RESNET)).save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8).save_pretrained(tmp_path)
    _, processor = build(model_name_or_path=str(tmp_path))
    own = InputFormat.of(processor)
    assert own.size == (64, 64) and own.crop_ratio == pytest.approx(0.8)
    image = torch.randint(0, 256, (3, 100, 150), dtype=torch.uint8)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], expected)
    _, whole = build(model_name_or_path=str(tmp_path), eval_crop_ratio=1.0)
    assert not getattr(whole, "do_center_crop", None)


def test_a_checkpoint_of_many_labels_becomes_a_classifier_of_one(tmp_path):
    """Its classes exclude each other, as those of the data do: what applies it takes a softmax."""
    ViTForImageClassification(
        ViTConfig(**VIT, num_labels=3, problem_type="multi_label_classification")
    ).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, _ = build(model_name_or_path=str(tmp_path))
    assert model.config.problem_type is None


def test_how_our_processor_crops_is_taken_over_or_refused(tmp_path):
    HfViTForImageClassification(HfViTConfig(**VIT, num_labels=3)).save_pretrained(tmp_path)
    fields = {"size": {"height": 32, "width": 32}}
    HfViTImageProcessor(**fields, crop_pct=0.8).save_pretrained(tmp_path)
    _, processor = build(model_name_or_path=str(tmp_path))
    assert InputFormat.of(processor).crop_ratio == pytest.approx(0.8)
    HfViTImageProcessor(**fields, crop_pct=1.0, crop_mode="squash").save_pretrained(tmp_path)
    _, processor = build(model_name_or_path=str(tmp_path))
    assert dict(processor.size) == fields["size"] and not getattr(processor, "do_center_crop", None)
    HfViTImageProcessor(**fields, crop_mode="border").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="crop_mode 'border', which is not known here: give --eval_crop_ratio"):
        build(model_name_or_path=str(tmp_path))
    _, processor = build(model_name_or_path=str(tmp_path), eval_crop_ratio=0.5)
    assert InputFormat.of(processor).crop_ratio == 0.5


@pytest.mark.parametrize(
    "fields", [{}, {"num_register_tokens": 2}, {"num_register_tokens": 2, "registers_first": True}]
)
def test_a_distillation_token_joins_those_of_a_checkpoint(fields, tmp_path):
    """All other tokens enter the layers as before; the new one stands without a position at its index."""
    torch.manual_seed(0)
    known = randomise(HfViTForImageClassification(HfViTConfig(**VIT, **fields, **CLASSES)))
    known.save_pretrained(tmp_path)
    overrides = Options({"use_distillation_token": True})
    taught = build_model(ModelArguments(model_name_or_path=str(tmp_path), config_overrides=overrides), CLASSES).eval()
    pixels = torch.randn(2, 3, 32, 32)
    before, after = (model.vit.embeddings(pixels, (4, 4)) for model in (known, taught))
    index = taught.config.distillation_token_index
    assert torch.equal(torch.cat((after[:, :index], after[:, index + 1 :]), dim=1), before)
    assert torch.equal(after[:, index], taught.vit.embeddings.distillation_token[0].expand(2, -1))
    assert torch.equal(taught.classifier.weight, known.classifier.weight)
