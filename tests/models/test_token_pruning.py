"""Pruning by class attention against loops written from the paper (2202.07800)."""

import math

import pytest
import torch

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification
from hf_vit.models.token_pruning import ClassAttentionPruning
from hf_vit.models.token_reduction import TokenGroups


def prune_by_loops(tokens, attention, rate, first):
    """One image: tokens and the class token's attention to each patch, of which a share stays."""
    number = math.ceil(rate * len(attention))
    order = sorted(range(len(attention)), key=lambda i: -attention[i])
    kept = sorted(order[:number])
    fused = sum(attention[i] * tokens[first + i] for i in order[number:])
    return [*tokens[:first], *(tokens[first + i] for i in kept), fused], kept


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_register_tokens": 2, "registers_first": True}], ids=str)
def test_logits_are_those_of_loops(tiny_model, images, options):
    model = tiny_model(token_pruning_keep_rate=[0.7, 1.0, 0.5], num_hidden_layers=3, **options)
    pixel_values, vit, config = images(model), model.vit, model.config
    heads, first, row = config.num_attention_heads, config.num_prefix_tokens, config.class_token_index
    outputs = model(pixel_values)
    for image, logits in zip(pixel_values, outputs.logits):
        tokens = list(vit.embeddings(image[None], config.grid_size)[0])
        for layer, rate in zip(vit.layers, config.token_pruning_keep_rate):
            states = layer.attention_norm(torch.stack(tokens))
            query, key, value = layer.attention.qkv_proj(states).view(len(tokens), 3, heads, -1).unbind(1)
            weights = (torch.einsum("ihk,jhk->hij", query, key) / query.shape[-1] ** 0.5).softmax(-1)
            attended = layer.attention.out_proj(torch.einsum("hij,jhk->ihk", weights, value).flatten(1))
            tokens = list(torch.stack(tokens) + attended)
            if rate < 1:
                tokens, _ = prune_by_loops(tokens, weights.mean(0)[row, first:].tolist(), rate, first)
            tokens = list(torch.stack(tokens) + layer.mlp(layer.mlp_norm(torch.stack(tokens))))
        expected = model.classifier(vit.norm(tokens[row]))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert [int(groups.max()) + 1 - first for groups in outputs.token_groups] == [16, 13, 13, 8]


def test_groups_say_who_stays_and_who_is_fused():
    tokens, attention = torch.randn(2, 8, 4), torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.05, 0.15], [6, 5, 4, 3, 2, 1.0]])
    got, groups = ClassAttentionPruning(3, 2, 0)(tokens, TokenGroups.whole(tokens, 8, None), attention)
    for i in range(2):
        expected, kept = prune_by_loops(list(tokens[i]), attention[i].tolist(), 0.5, 2)
        torch.testing.assert_close(got[i], torch.stack(expected))
        assert groups.position[i].tolist()[:5] == [0, 1, *(2 + patch for patch in kept)]
        assert groups.group[i].tolist() == [
            0, 1, *(2 + kept.index(patch) if patch in kept else 5 for patch in range(6))
        ]  # fmt: skip
    assert groups.position[:, 5].tolist() == [2, 5]  # the pruned one with the most attention


@torch.no_grad()
def test_it_measures_the_attention_that_the_layer_has(tiny_model, images):
    model = tiny_model(position_embedding="relative_bias", token_pruning_keep_rate=[0.5, 1.0])
    pixel_values, seen = images(model), []
    attention = model.vit.layers[0].attention
    attention.register_forward_hook(lambda module, given, outputs: seen.append(outputs[2]))
    weights = model(pixel_values, output_attentions=True).attentions[0]
    torch.testing.assert_close(seen[0], weights[:, :, 0, 1:].mean(1))


def test_trains_saves_and_gives_grids(tiny_model, images, tmp_path):
    model = tiny_model(token_pruning_keep_rate=0.6, position_embedding="rope_2d").train()
    pixel_values = images(model)
    model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again = HfViTForImageClassification.from_pretrained(tmp_path).eval()
    grids = HfViTBackbone.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        whole, alone = again(pixel_values), again(pixel_values[:1])
        assert torch.equal(whole.logits, model(pixel_values).logits)
        torch.testing.assert_close(alone.logits, whole.logits[:1], atol=1e-5, rtol=1e-5)
        assert grids(pixel_values).feature_maps[-1].shape == (3, 32, 4, 4)


def test_a_number_counts_at_the_quarters_of_the_depth():
    config = HfViTConfig.from_variant("deit_small_patch16_224", token_pruning_keep_rate=0.7)
    from hf_vit.models.token_schedule import patches_after_layers

    # The paper's DeiT-S: 137 + 1 of 196, then 97 + 1, then 69 + 1.
    assert patches_after_layers(config, 196) == [196] * 3 + [139] * 3 + [99] * 3 + [71] * 3


@pytest.mark.parametrize(
    "options,message",
    [
        ({"token_pruning_keep_rate": 0.0}, r"token_pruning_keep_rate must be in \(0, 1\], got 0.0"),
        (
            {"token_pruning_keep_rate": [0.5]},
            "token_pruning_keep_rate must have one value for each of 2 layers, got 1",
        ),
        (
            {"token_pruning_keep_rate": 0.5, "use_class_token": False, "pooling": "mean"},
            "token_pruning_keep_rate 0.5 needs a class token in the layers: use_class_token must be True",
        ),
        (
            {"token_pruning_keep_rate": 0.5, "num_class_layers": 1},
            "token_pruning_keep_rate 0.5 needs a class token in the layers: .* num_class_layers 0",
        ),
        ({"token_pruning_keep_rate": 0.5, "talking_heads": True}, "talking_heads must not be True with token_pruning"),
        (
            {"token_pruning_keep_rate": 0.5, "token_merging_r": 1},
            "token_merging_r and token_pruning_keep_rate must not be given together",
        ),
    ],
    ids=str,
)
def test_refuses(tiny_config, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)
