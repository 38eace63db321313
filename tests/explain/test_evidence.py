"""Exact evidence against the logits and what the model says without a patch; relevance against finite differences."""

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_vit import HfViTModel
from hf_vit.explain import attention_relevance, has_evidence, patch_evidence
from hf_vit.models.attention import eager_attention_forward

LINEAR = [
    {"pooling": "mean", "pooling_norm": "before"},
    {"pooling": "mean", "pooling_norm": "after", "use_distillation_token": True},
    {"pooling": "weighted", "pooling_norm": "after", "norm_type": "rms_norm", "num_register_tokens": 2},
    {"pooling": "cls_mean", "cls_mean_weight": 0.3, "learn_cls_mean_weight": True, "pooling_norm": "after"},
    {"pooling": ["cls", "max", "mean"], "pooling_norm": "after"},
    {"pooling": ["weighted", "cls_tanh"], "pooling_norm": "none"},
    {"pooling": "cls_mean", "pooling_norm": "before", "num_class_layers": 1, "use_distillation_token": True},
]


@pytest.mark.parametrize("options", LINEAR, ids=str)
def test_evidence_sums_to_the_logits(tiny_model, images, options):
    model = tiny_model(**options)
    pixel_values = images(model, 2, 20, 16)
    evidence = patch_evidence(model, pixel_values)
    assert evidence.patches.shape == (2, 5, 4, 5)
    torch.testing.assert_close(evidence.logits, model(pixel_values).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [LINEAR[0], {**LINEAR[0], "pooling": "cls_mean"}], ids=str)
def test_evidence_is_what_the_logits_lose_without_a_patch(tiny_model, images, options):
    model = tiny_model(**options)
    pixel_values = images(model, 1)
    evidence, whole = patch_evidence(model, pixel_values), model(pixel_values).logits
    for index in (0, 7, 15):
        place = model.config.num_prefix_tokens + index

        def remove(module, inputs, output, place=place):
            return torch.cat((output[:, :place], torch.zeros_like(output[:, :1]), output[:, place + 1 :]), dim=1)

        with model.vit.norm.register_forward_hook(remove):
            lost = whole - model(pixel_values).logits
        torch.testing.assert_close(evidence.patches[0].flatten(0, 1)[index], lost[0], rtol=1e-4, atol=1e-5)


def test_a_held_norm_divides_as_it_does(tiny_model, images):
    model = tiny_model(pooling="mean", pooling_norm="after")
    pixel_values = images(model, 1)
    tokens = model.vit(pixel_values).last_hidden_state[0, model.config.num_prefix_tokens :].detach().double().numpy()
    norm, head = model.vit.norm, model.classifier.weight.detach().double().numpy()
    deviation = np.sqrt(tokens.mean(0).var() + norm.eps)
    centred = (tokens - tokens.mean(1, keepdims=True)) / deviation * norm.weight.detach().double().numpy()
    expected = centred @ head.T / len(tokens)
    found = patch_evidence(model, pixel_values).patches[0].flatten(0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "attention", ["mean", "attention"]])
def test_other_poolings_have_no_exact_evidence(tiny_model, images, pooling):
    model = tiny_model(pooling=pooling)
    assert not has_evidence(model)
    with pytest.raises(ValueError, match=r"pooling must read patches .*attention_relevance"):
        patch_evidence(model, images(model))


def test_a_body_has_no_evidence_without_a_head(tiny_model, images):
    model = tiny_model(pooling="mean", num_labels=0)
    with pytest.raises(ValueError, match="num_labels 0"):
        patch_evidence(model, images(model))


# --- relevance -------------------------------------------------------------------------------------------------------


def attention_and_gradient(model, pixel_values, target, layer, step=1e-2):
    """A layer's attention (H, T, T), and how fast a logit grows with each of its weights, by central differences."""
    heads, tokens = model.config.num_attention_heads, model.vit(pixel_values).last_hidden_state.shape[1]
    nudges = step * torch.eye(heads * tokens**2, dtype=torch.float64).view(-1, heads, tokens, tokens)
    nudges = torch.cat((nudges, -nudges))
    seen = {}

    def nudged(module, query, key, value, attention_mask, **kwargs):
        output, weights = eager_attention_forward(module, query, key, value, attention_mask, **kwargs)
        if module is model.vit.layers[layer].attention:
            seen["weights"] = weights[0]
            output = torch.matmul(weights + nudges, value).transpose(1, 2)
        return output, weights

    ALL_ATTENTION_FUNCTIONS.register("nudged", nudged)
    before, model.config._attn_implementation = model.config._attn_implementation, "nudged"
    try:
        with torch.no_grad():
            logits = model(pixel_values.expand(len(nudges), -1, -1, -1)).logits[:, target]
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS._global_mapping["nudged"]
    up, down = logits.view(2, heads, tokens, tokens)
    return seen["weights"].numpy(), ((up - down) / (2 * step)).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_relevance_is_attention_times_its_gradient(tiny_model, images, pooling):
    model = tiny_model(pooling=pooling, image_size=8).double()
    pixel_values = images(model, 1).double()
    layers = []
    for layer in range(2):
        attention, gradient = attention_and_gradient(model, pixel_values, 3, layer)
        layers.append((attention * gradient).clip(min=0).mean(0))
    relevance = np.eye(5)
    for layer in layers:
        relevance = relevance + layer @ relevance
    relevance -= np.eye(5)
    expected = relevance[0, 1:] if pooling == "cls" else relevance[1:, 1:].mean(0)
    found = attention_relevance(model, pixel_values, 3)[0].flatten()
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-6)


def test_relevance_of_every_architecture(model, images):
    """Of a batch it is what it is of its images alone, though the weights are frozen and gradients are off."""
    model.requires_grad_(False)
    pixel_values = images(model, 2)
    with torch.no_grad():
        both = attention_relevance(model, pixel_values, torch.tensor([1, 4]))
    rows, columns = (side // patch for side, patch in zip(model.config.image_shape, model.config.patch_shape))
    assert both.shape == (2, rows, columns) and (both >= 0).all() and (both > 0).any()
    torch.testing.assert_close(both[1:], attention_relevance(model, pixel_values[1:], 4), rtol=1e-3, atol=1e-7)


def test_distilled_models_are_asked_for_both_tokens(tiny_model, images):
    model = tiny_model(use_distillation_token=True)
    pixel_values = images(model, 1)
    found = attention_relevance(model, pixel_values, 0)
    model.distillation_head.weight.data.zero_()
    assert not torch.allclose(found, attention_relevance(model, pixel_values, 0))


def test_evidence_needs_a_classifier(tiny_model, images):
    body = tiny_model(HfViTModel, pooling="mean")
    with pytest.raises(AttributeError, match="classifier"):
        patch_evidence(body, images(body))
