"""Curves against closed forms, features and distances against numpy and scikit-learn, Grad-CAM against its package."""

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.decomposition import PCA
from torch import nn

from hf_vit import HfViTModel
from hf_vit.explain import (
    LogitsOf,
    attention_distance,
    deletion_and_insertion,
    feature_components,
    patch_evidence,
    reshape_transform,
)
from hf_vit.explain.overlay import overlay


class Sum(nn.Module):
    """A classifier of one class whose logit is the sum of the pixels; a regression, so that scores are logits."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, pixel_values):
        return type("Output", (), {"logits": pixel_values.sum((1, 2, 3))[:, None]})


def test_curves_of_a_sum_are_sums(tiny_config):
    model = Sum(tiny_config(problem_type="regression", num_labels=1))
    values = torch.tensor([[4.0, -1.0], [0.0, 1.0]])
    pixel_values = values.repeat_interleave(3, 0).repeat_interleave(3, 1)[None, None]  # (1, 1, 6, 6)
    curves = deletion_and_insertion(model, pixel_values, values[None], 0)
    torch.testing.assert_close(curves.fractions, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    # A patch has 9 pixels; what is gone has the mean, 1; the order is 4, 1, 0, -1.
    torch.testing.assert_close(curves.deletion[0], 9 * torch.tensor([4.0, 1.0, 1.0, 2.0, 4.0]))
    torch.testing.assert_close(curves.insertion[0], 9 * torch.tensor([4.0, 7.0, 7.0, 6.0, 4.0]))
    torch.testing.assert_close(curves.deletion_area, torch.tensor([9 * 2.0]))
    assert deletion_and_insertion(model, pixel_values, values[None], 0, num_steps=2).deletion.shape == (1, 3)


def test_bad_maps_are_refused(tiny_model, images):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"heat_map must have shape \(3, rows, columns\), got \(2, 4, 4\)"):
        deletion_and_insertion(model, images(model), torch.zeros(2, 4, 4), 0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        deletion_and_insertion(model, images(model), torch.zeros(3, 4, 4), 0, num_steps=0)


def test_the_evidence_of_a_linear_model_deletes_best():
    """Taking the largest parts of a sum away first lowers it at least as fast as any other order."""
    model = Sum(type("Config", (), {"problem_type": "regression"}))
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 1, 4, 4, generator=generator)
    best = deletion_and_insertion(model, pixel_values, pixel_values[:, 0], 0)
    for _ in range(3):
        other = deletion_and_insertion(model, pixel_values, torch.rand(2, 4, 4, generator=generator), 0)
        assert (best.deletion <= other.deletion + 1e-5).all() and (best.insertion >= other.insertion - 1e-5).all()


def test_features_are_principal_components(tiny_model, images):
    model = tiny_model(HfViTModel, pooling="mean", num_register_tokens=2)
    pixel_values = images(model, 2)
    found = feature_components(model, pixel_values)
    assert found.shape == (2, 4, 4, 3) and found.amin() == 0 and found.amax() == 1
    for index, states in enumerate(model(pixel_values).last_hidden_state.detach()[:, -16:].numpy()):
        scores = PCA(3, svd_solver="full").fit_transform(states)
        for component in range(3):
            correlation = np.corrcoef(scores[:, component], found[index, ..., component].flatten())[0, 1]
            assert abs(correlation) == pytest.approx(1, abs=1e-4)


def test_features_of_one_patch_are_grey(tiny_model, images):
    model = tiny_model(HfViTModel)
    torch.testing.assert_close(feature_components(model, images(model, 1, 4, 4)), torch.full((1, 1, 1, 3), 0.5))


def test_distance_is_that_of_what_patches_attend_to(model, images):
    config = model.config
    pixel_values = images(model, 2)
    found = attention_distance(model, pixel_values)
    assert found.shape == (2, config.num_hidden_layers, config.num_attention_heads)
    rows, columns = config.grid_size
    row, column = np.divmod(np.arange(rows * columns), columns)
    height, width = config.patch_shape
    distances = np.hypot(height * (row[:, None] - row), width * (column[:, None] - column))
    for layer, attention in enumerate(model(pixel_values, output_attentions=True).attentions[: found.shape[1]]):
        weights = attention.detach().numpy()[:, :, -len(row) :, -len(row) :]
        expected = ((weights / weights.sum(-1, keepdims=True)) * distances).sum(-1).mean(-1)
        np.testing.assert_allclose(found[:, layer], expected, rtol=1e-4)


# --- pytorch-grad-cam ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_grad_cam_of_the_last_norm_is_the_evidence_for_a_class(tiny_model, images, size):
    """Every averaged patch has the head's row as its gradient: Grad-CAM is the positive evidence."""
    model = tiny_model(pooling="mean", pooling_norm="before", num_register_tokens=1)
    pixel_values = images(model, 2, *size)
    transform = reshape_transform(model, size)
    with GradCAM(LogitsOf(model), [model.vit.norm], reshape_transform=transform) as cam:
        found = cam(pixel_values, [ClassifierOutputTarget(2)] * 2)
    evidence = patch_evidence(model, pixel_values).patches[..., 2].numpy()
    scaled = scale_cam_image(scale_cam_image(evidence.clip(min=0), size[::-1]))  # of a layer, then of all layers
    np.testing.assert_allclose(found, scaled, rtol=1e-3, atol=1e-4)


def test_grad_cam_of_a_class_token_reads_the_last_attention(tiny_model, images):
    model = tiny_model()
    transform = reshape_transform(model)
    with GradCAM(LogitsOf(model), [model.vit.layers[-1].attention_norm], reshape_transform=transform) as cam:
        found = cam(images(model, 1), [ClassifierOutputTarget(0)])
    assert found.shape == (1, 16, 16) and found.max() > 0.5


def test_patches_become_a_grid(tiny_model):
    model = tiny_model(num_register_tokens=2)
    tokens = torch.arange(19.0)[None, :, None].expand(2, -1, 3)
    grid = reshape_transform(model)(tokens)
    assert grid.shape == (2, 3, 4, 4) and grid[0, 0].flatten().tolist() == list(range(3, 19))
    with pytest.raises(ValueError, match="tokens must have shape"):
        reshape_transform(model)(tokens[:, :15])


# --- overlays --------------------------------------------------------------------------------------------------------


def test_an_overlay_is_strongest_where_the_map_is():
    image = Image.new("RGB", (32, 32), (128, 128, 128))
    drawn = np.asarray(overlay(image, [[1.0, 0.0], [-1.0, 0.25]], signed=True)).astype(int)
    assert drawn.shape == (32, 32, 3)
    for_it, nothing, against, little = drawn[4, 4], drawn[4, 28], drawn[28, 4], drawn[28, 28]
    assert for_it[0] > for_it[2] + 40 and against[2] > against[0] + 20  # orange and purple
    assert np.abs(nothing - 128).max() < np.abs(little - 128).max() < np.abs(for_it - 128).max()
    assert overlay(np.zeros((4, 4, 3)), np.ones((4, 4))).size == (32, 32)
