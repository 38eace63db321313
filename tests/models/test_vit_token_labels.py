"""Labels of patches (token labeling, 2104.10858): the model's side."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.models.losses import classification_loss, token_labeling_loss
from hf_vit.models.patch_embedding import PatchEmbedding
from hf_vit.models.vit_checks import POOLINGS

HEAD = {"use_token_labeling_head": True}


@pytest.fixture
def batch(images):
    """Images of a model, labels, and a distribution over the classes for each patch."""

    def make(model):
        generator = torch.Generator().manual_seed(2)
        classes, patches = model.config.num_labels, math.prod(model.config.grid_size)
        return {
            "pixel_values": images(model),
            "labels": torch.randint(classes, (3,), generator=generator),
            "token_labels": torch.rand(3, patches, classes, generator=generator).softmax(-1),
        }

    return make


def test_the_loss_is_that_of_the_paper():
    """H(X_cls, y_cls) + beta / N sum_i H(X_i, y_i), with one patch's label shared by two classes."""
    logits = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]])
    labels = torch.tensor([[[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]]])
    entropies = []
    for x, y in zip(logits[0].tolist(), labels[0].tolist()):
        total = sum(math.exp(value) for value in x)
        entropies.append(-sum(q * (value - math.log(total)) for value, q in zip(x, y)))
    assert token_labeling_loss(logits, labels).item() == pytest.approx(sum(entropies) / 2, abs=1e-6)
    # What has no label does not count.
    unlabelled = torch.cat((labels, torch.zeros(1, 1, 3)), dim=1)
    logits = torch.cat((logits, torch.randn(1, 1, 3)), dim=1)
    assert token_labeling_loss(logits, unlabelled).item() == pytest.approx(sum(entropies) / 2, abs=1e-6)
    assert token_labeling_loss(logits, torch.zeros(1, 3, 3)) == 0


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_patches_loss_is_added_with_its_weight(tiny_model, batch, weight):
    model = tiny_model(**HEAD, token_labeling_weight=weight)
    given = batch(model)
    outputs = model(**given)
    expected = classification_loss(outputs.logits, given["labels"])
    expected = expected + weight * token_labeling_loss(outputs.token_logits, given["token_labels"])
    assert_close(outputs.loss, expected)


@pytest.mark.parametrize(
    "options",
    [
        *({"pooling": name} for name in POOLINGS if name != "none"),
        {"pooling": ["max", "weighted"], "num_register_tokens": 2, "registers_first": True},
        {"pooling": "attention", "pooling_norm": "none"},
        {"pooling": "mean", "use_class_token": False},
        {"num_class_layers": 1, "use_distillation_token": True},
    ],
    ids=str,
)
def test_every_patch_goes_through_the_head(tiny_model, batch, options):
    """Of LV-ViT's stem and residual branches, beside every pooling and the other heads, and all of them learn."""
    model = tiny_model(**HEAD, patch_embedding="lvvit", residual_scale=0.5, **options)
    given = batch(model)
    outputs = model(**given)
    with torch.no_grad():
        tokens = model.vit(given["pixel_values"]).last_hidden_state[:, model.config.num_prefix_tokens :]
        tokens = model.vit.norm(tokens) if model.config.norm_after_pooling else tokens
        assert_close(outputs.token_logits, model.token_labeling_head(tokens))
    assert outputs.token_logits.shape == (3, math.prod(model.config.grid_size), model.config.num_labels)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_are_those_of_the_sum(tiny_model, batch):
    model = tiny_model(**HEAD, layer_scale_init_value=0.1)
    given = batch(model)
    model(**given).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    parameter, step = model.vit.embeddings.patch_embedding.projection.bias, 1e-2
    with torch.no_grad():
        losses = []
        for sign in (1, -1):
            parameter[3] += sign * step
            losses.append(model(**given).loss)
            parameter[3] -= sign * step
    assert parameter.grad[3].item() == pytest.approx((losses[0] - losses[1]).item() / (2 * step), rel=2e-2, abs=1e-4)


def test_mixtoken_takes_patches_of_the_image_before(tiny_model, images):
    """Without a stem, as CutMix would along the patches' borders."""
    model = tiny_model(position_embedding="relative_bias")
    pixels = images(model)
    rows, columns = model.config.grid_size
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[1:3, :2] = True
    height, width = model.config.patch_shape
    cut = mask.repeat_interleave(height, 0).repeat_interleave(width, 1)
    with torch.no_grad():
        mixed = model(pixels, mixtoken_mask=mask.flatten()).logits
        assert_close(mixed, model(torch.where(cut, pixels.roll(1, 0), pixels)).logits)
        assert torch.equal(model(pixels, mixtoken_mask=torch.zeros_like(mask).flatten()).logits, model(pixels).logits)


def test_the_stem_is_that_of_the_paper(tiny_config):
    """Three convolutions, the first of 7 x 7 and stride 2, with a norm and ReLU, then one of half the patch."""
    embedding = PatchEmbedding(
        tiny_config(patch_embedding="lvvit", patch_size=4, image_size=16, hidden_size=32)
    ).eval()
    convolutions = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), *(nn.Conv2d(64, 64, 3, 1, 1, bias=False) for _ in "12")]
    chain = nn.Sequential(*(part for each in convolutions for part in (each, nn.GroupNorm(8, 64), nn.ReLU())))
    chain.load_state_dict(embedding.stem.layers.state_dict())
    last = nn.Conv2d(64, 32, 2, 2)
    last.load_state_dict(
        {
            "weight": embedding.projection.weight.view_as(last.weight),
            "bias": embedding.projection.bias,
        }
    )
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = last(chain(pixels)).flatten(2).transpose(1, 2)
        assert_close(embedding(pixels, (4, 4)), expected, atol=1e-5, rtol=1e-5)


def test_residual_scale_is_a_constant_layer_scale(tiny_model, images):
    scaled = tiny_model(residual_scale=0.5)
    learnt = tiny_model(layer_scale_init_value=0.5)
    missing, _ = learnt.load_state_dict(scaled.state_dict(), strict=False)
    assert missing and all("layer_scale" in name for name in missing)
    for layer in learnt.vit.layers:
        nn.init.constant_(layer.layer_scale1.scale, 0.5)
        nn.init.constant_(layer.layer_scale2.scale, 0.5)
    with torch.no_grad():
        assert_close(scaled(images(scaled)).logits, learnt(images(scaled)).logits)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 8.53), ("small", 26.15), ("medium", 55.83)])
def test_variants_have_the_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        model = HfViTForImageClassification(HfViTConfig.from_variant(f"lvvit_{name}", num_labels=1000))
    assert round(model.num_parameters() / 1e6, 2) == millions
    assert HfViTConfig.from_variant(f"lvvit_{name}_384").image_size == 384


def test_a_saved_model_has_its_head(tiny_model, batch, tmp_path):
    model = tiny_model(**HEAD, patch_embedding="lvvit", residual_scale=0.5).eval()
    model.save_pretrained(tmp_path)
    loaded = HfViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch(model)).loss, model(**batch(model)).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**HEAD, "patch_dropout_prob": 0.5}, "patch_dropout_prob must be 0 with use_token_labeling_head"),
        ({"token_labeling_weight": -1.0}, "token_labeling_weight must be at least 0, got -1"),
        ({"residual_scale": 0.0}, "residual_scale must be above 0, got 0"),
        ({"patch_embedding": "lvvit", "patch_size": 3, "image_size": 12}, "patch_size must be even"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(tiny_config, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_labels_that_do_not_fit(tiny_model, batch, images):
    model = tiny_model(**HEAD)
    given = batch(model)
    cases = [
        ({"labels": None}, "labels must be given with token_labels"),
        ({"token_labels": given["token_labels"][:, 1:]}, r"token_labels must have shape \(3, "),
        ({"token_labels": given["token_labels"] / 2}, "of sum 1 or 0"),
        ({"token_labels": given["token_labels"] * -1}, r"in \[0, 1\]"),
        ({"token_labels": given["token_labels"].long()}, "floating-point dtype"),
        ({"mixtoken_mask": torch.ones(3, dtype=torch.bool)}, "mixtoken_mask must be bool of shape"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            model(**{**given, **change})
    with pytest.raises(ValueError, match="token_labels must be None without config"):
        tiny_model()(**given)
    regressor = tiny_model(**HEAD, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="token_labels must be None unless the classes exclude each other"):
        regressor(**{**given, "labels": torch.zeros(3, model.config.num_labels)})
