"""Token merging against loops over images, patches and pairs, written from the paper (2210.09461)."""

import copy

import pytest
import torch
from torch import nn

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTModel, explain
from hf_vit.models.token_merging import TokenMerging, best_matches
from hf_vit.models.token_reduction import TokenGroups


def merge_by_loops(tokens, sizes, keys, members, number, first):
    """One image: lists of tokens, sizes, mean keys and members, of which `number` patches after the first `first`
    tokens are merged."""
    patches = list(range(first, len(tokens)))
    rows, columns = patches[::2], patches[1::2]
    best = []
    for row in rows:
        products = [nn.functional.cosine_similarity(keys[row], keys[column], dim=0).item() for column in columns]
        nearest = max(range(len(columns)), key=lambda i: products[i])
        best.append((products[nearest], row, columns[nearest]))
    chosen = sorted(best, key=lambda match: -match[0])[:number]
    sums = [token * size for token, size in zip(tokens, sizes)]
    sizes, members = list(sizes), copy.deepcopy(members)
    for _, source, target in chosen:
        sums[target], sizes[target] = sums[target] + sums[source], sizes[target] + sizes[source]
        members[target] = members[target] + members[source]
    gone = {source for _, source, _ in chosen}
    left = [i for i in range(len(tokens)) if i not in gone]
    return [sums[i] / sizes[i] for i in left], [sizes[i] for i in left], [members[i] for i in left]


def groups_by_loops(members, num_tokens):
    return torch.tensor([next(i for i, group in enumerate(members) if token in group) for token in range(num_tokens)])


def classify_by_loops(model, image, number):
    """The logits of a model with learned or rotary positions, an image at a time, each token of its own."""
    vit, config = model.vit, model.config
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    grid = config.grid_size
    tokens = list(vit.embeddings(image[None], grid)[0])
    first, positions = config.num_layer_prefix_tokens, list(range(len(tokens)))
    sizes, members = [1.0] * len(tokens), [[i] for i in range(len(tokens))]
    for layer in vit.layers:
        states = layer.attention_norm(torch.stack(tokens))
        query, key, value = layer.attention.qkv_proj(states).view(len(tokens), 3, heads, size).unbind(1)  # (T, H, K)
        query, key = layer.attention.q_norm(query), layer.attention.k_norm(key)
        if vit.rotary_embedding is not None:
            cos, sin = (table[positions][:, None] for table in vit.rotary_embedding(grid))
            query, key = (
                states * cos + torch.cat((-states[..., size // 2 :], states[..., : size // 2]), dim=-1) * sin
                for states in (query, key)
            )
        output = []
        for i in range(len(tokens)):
            scores = torch.stack([(query[i] * key[j]).sum(-1) / size**0.5 for j in range(len(tokens))])  # (T, H)
            shares = scores.exp() * torch.tensor(sizes)[:, None]  # a token that stands for several counts as several
            output.append(((shares / shares.sum(0))[:, :, None] * value).sum(0).flatten())
        tokens = [token + part for token, part in zip(tokens, layer.attention.out_proj(torch.stack(output)))]
        kept = copy.deepcopy(members)
        tokens, sizes, members = merge_by_loops(tokens, sizes, key.mean(1), members, number, first)
        # The position of a group is that of the member that was found, whose own members come first.
        positions = [positions[next(i for i, old in enumerate(kept) if old[0] == group[0])] for group in members]
        tokens = list(torch.stack(tokens) + layer.mlp(layer.mlp_norm(torch.stack(tokens))))
    final = torch.stack(tokens)
    final = final if config.norm_after_pooling else vit.norm(final)
    weights = torch.tensor(sizes[first:])[:, None]
    pooled = {"cls": final[0], "mean": (final[first:] * weights).sum(0) / weights.sum()}
    pooled = torch.cat([vit.norm_pooled(pooled[name]) for name in config.poolings])
    return model.classifier(pooled), groups_by_loops(members, len(vit.embeddings(image[None], grid)[0]))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": ["cls", "mean"]},
        {"pooling": "mean", "use_class_token": False, "num_register_tokens": 1},
        {"position_embedding": "rope_2d", "num_register_tokens": 2, "qk_norm": True, "pooling": ["cls", "mean"]},
    ],
    ids=["class", "mean", "rope_2d"],
)
def test_logits_and_groups_are_those_of_loops(tiny_model, images, options):
    model = tiny_model(token_merging_r=4, num_hidden_layers=3, **options)
    pixel_values = images(model)
    outputs = model(pixel_values)
    for image, logits, index in zip(pixel_values, outputs.logits, outputs.token_groups[-1]):
        expected, groups = classify_by_loops(model, image, 4)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(index, groups)


def merged(tokens, keys, number, first=1, sizes=None):
    groups = TokenGroups.whole(tokens, tokens.shape[1], None)._replace(sizes=sizes)
    merging = TokenMerging(number, first)
    return merging(tokens, groups, merging.measure(keys, keys, None))


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("num_patches", [2, 9, 12])
def test_one_step_is_that_of_loops(first, num_patches):
    num_tokens = first + num_patches
    tokens, keys = torch.randn(3, num_tokens, 6), torch.randn(3, 2, num_tokens, 4)
    sizes = torch.randint(1, 5, (3, num_tokens))
    for number in (1, num_patches // 2):
        got, groups = merged(tokens, keys, number, first, sizes)
        for i in range(3):
            expected, counts, members = merge_by_loops(
                list(tokens[i]), sizes[i].tolist(), keys[i].mean(0), [[j] for j in range(num_tokens)], number, first
            )
            torch.testing.assert_close(got[i], torch.stack(expected))
            torch.testing.assert_close(groups.sizes[i], torch.tensor(counts))
            assert torch.equal(groups.group[i], groups_by_loops(members, num_tokens))
        torch.testing.assert_close(groups.sizes.sum(1), sizes.sum(1))


def test_never_holds_the_whole_similarity_matrix():
    rows, columns = torch.randn(2, 400, 8), torch.randn(2, 300, 8)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            results = function(*arguments, **(options or {}))
            tensors = results if isinstance(results, (tuple, list)) else [results]
            largest.extend(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))
            return results

    with Sizes():
        best, found = best_matches(rows, columns)
    whole = rows @ columns.transpose(1, 2)
    assert max(largest) == 2 * 128 * 300
    assert torch.equal(found, whole.argmax(2))
    torch.testing.assert_close(best, whole.amax(2))


# Without positions, a patch that is there twice is one patch of size two: merging it changes nothing at all.
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": ["cls", "mean", "max", "cls_mean", "weighted", "attention"]},
        {"pooling": ["cls", "mean", "weighted"], "talking_heads": True},
        {"num_class_layers": 2, "talking_heads": True, "use_distillation_token": True, "num_register_tokens": 1},
    ],
    ids=["poolings", "talking_heads", "class_layers"],
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_merging_identical_patches_changes_nothing(tiny_model, options, implementation):
    model = tiny_model(position_embedding="none", num_hidden_layers=3, **options)
    model.set_attn_implementation(implementation)
    image = torch.randn(1, 3, 16, 16)
    image[..., 4:8], image[..., 12:] = image[..., :4], image[..., 8:12]  # columns in pairs
    with torch.no_grad():
        expected = model(image).logits
        model.config.token_merging_r = [0, 8, 0]
        outputs = model(image)
    assert outputs.token_groups[-1].max() < outputs.token_groups[0].max()
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_image_gives_the_same_whatever_is_beside_it(model, images):
    model.config.token_merging_r = 3
    pixel_values = images(model, 4)
    together = model(pixel_values)
    for i in range(4):
        alone = model(pixel_values[i : i + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-5)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone.token_groups, together.token_groups))


@torch.no_grad()
def test_without_merging_nothing_changes(model, images):
    pixel_values = images(model)
    expected = model(pixel_values)
    assert expected.token_groups is None
    model.config.token_merging_r = 3
    assert not torch.equal(model(pixel_values).logits, expected.logits)
    model.config.token_merging_r = [0, 0]
    assert torch.equal(model(pixel_values).logits, expected.logits)


def test_relative_bias_is_the_mean_over_rows_and_columns_of_a_group():
    bias = torch.randn(1, 2, 4, 4)
    groups = TokenGroups(torch.tensor([[0, 1, 1, 2], [0, 1, 2, 2]]), torch.zeros(2, 3))
    got = groups.of_pairs(bias)
    members = [[[0], [1, 2], [3]], [[0], [1], [2, 3]]]
    for i, of_image in enumerate(members):
        for a, rows in enumerate(of_image):
            for b, columns in enumerate(of_image):
                expected = torch.stack([bias[0, :, row, column] for row in rows for column in columns]).mean(0)
                torch.testing.assert_close(got[i, :, a, b], expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_trains_also_with_gradient_checkpointing(model, images, use_reentrant):
    model.config.token_merging_r = 3
    pixel_values = images(model).requires_grad_()

    def gradients():
        model.train().zero_grad()
        model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients()
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), expected)


def test_gradients_are_those_of_differences(tiny_model, images):
    model = tiny_model(token_merging_r=4).double()
    pixel_values = images(model, 1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixel_values).logits.sum(), pixel_values)
    step = 1e-6 * torch.randn_like(pixel_values)
    with torch.no_grad():
        difference = model(pixel_values + step).logits.sum() - model(pixel_values - step).logits.sum()
    torch.testing.assert_close((gradient * step).sum() * 2, difference, rtol=1e-4, atol=0)


def test_patches_dropped_in_training_are_in_no_group(tiny_model, images):
    model = tiny_model(token_merging_r=2, patch_dropout_prob=0.5, position_embedding=["rope_2d", "relative_bias"])
    outputs = model.train()(images(model), labels=torch.tensor([0, 1, 2]))
    outputs.loss.backward()
    assert [(groups < 0).sum(1).tolist() for groups in outputs.token_groups] == [[8] * 3] * 3
    assert [int(groups.max()) + 1 for groups in outputs.token_groups] == [9, 7, 5]


@pytest.mark.parametrize("options", [{}, {"num_register_tokens": 2, "num_class_layers": 1}], ids=str)
def test_backbone_gives_merged_patches_the_same_features(tiny_model, images, options):
    model = tiny_model(HfViTBackbone, token_merging_r=5, out_indices=[0, 1, 2], **options)
    pixel_values = images(model)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
        groups = HfViTModel.forward(model, pixel_values).token_groups
    first = model.config.num_layer_prefix_tokens
    for index, states, features in zip(groups, outputs.hidden_states, outputs.feature_maps):
        features = features.flatten(2).transpose(1, 2)
        for i in range(3):
            for patch, group in enumerate(index[i, first:]):
                torch.testing.assert_close(features[i, patch], model.norm(states[i, group]))
    assert [features.shape for features in outputs.feature_maps] == [(3, 32, 4, 4)] * 3


def test_saved_loaded_and_set_while_loading(tiny_model, images, tmp_path):
    model = tiny_model(token_merging_r=[1, 5])
    model.save_pretrained(tmp_path)
    again = HfViTForImageClassification.from_pretrained(tmp_path).eval()
    assert again.config.token_merging_r == [1, 5]
    other = HfViTForImageClassification.from_pretrained(tmp_path, token_merging_r=7).eval()
    pixel_values = images(model)
    with torch.no_grad():
        assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)
        model.config.token_merging_r = 7
        assert torch.equal(other(pixel_values).logits, model(pixel_values).logits)
    with pytest.raises(ValueError, match="token_merging_r must leave at least one of 16 patches, got 9, which merges"):
        HfViTForImageClassification.from_pretrained(tmp_path, token_merging_r=9)


@torch.no_grad()
def test_with_packed_weights_and_in_bf16(tiny_model, images):
    model = tiny_model(token_merging_r=4, hidden_size=64, intermediate_size=128)
    pixel_values = images(model)
    expected = model(pixel_values).logits
    model.pack_weights()
    torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=1e-4)
    model.bfloat16()
    torch.testing.assert_close(model(pixel_values).logits.float(), expected, atol=0.1, rtol=0.1)


def test_exports_with_a_dynamic_batch(tiny_model, images):
    model = tiny_model(token_merging_r=[0, 3], pooling=["cls", "mean"])
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": images(model, 2)}, dynamic_shapes=shapes).module()
    pixel_values = images(model, 5)
    with torch.no_grad():
        got, expected = program(pixel_values=pixel_values), model(pixel_values)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.token_groups[-1], expected.token_groups[-1])


@pytest.mark.parametrize(
    "r,message",
    [
        (-1, "token_merging_r must be at least 0, got -1"),
        ([1], r"token_merging_r must have one value for each of 2 layers, got 1: \[1\]"),
        ([9, 0], "token_merging_r must be at most half of the patches of a layer, 8 in layer 0, got 9"),
        (8, "token_merging_r must leave at least one of 16 patches, got 8, which merges 16 in 2 layers"),
        (0.5, "token_merging_r must be of type"),
    ],
    ids=str,
)
def test_refuses(tiny_config, tiny_model, images, r, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(token_merging_r=r)


def test_refuses_a_schedule_of_the_wrong_length_at_run_time(tiny_model, images):
    model = tiny_model()
    model.config.token_merging_r = [1, 2, 3]
    with pytest.raises(ValueError, match="token_merging_r must have one value for each of 2 layers"):
        model(images(model))


def test_flash_attention_would_ignore_the_sizes(tiny_model, images):
    model = tiny_model(token_merging_r=3)
    model.config._attn_implementation = "flash_attention_2"
    for layer in model.vit.layers[:1]:
        layer.attention.config = copy.copy(model.config)
        layer.attention.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="nor tokens of different sizes as merging"):
        model(images(model))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_class_layers": 1, "num_register_tokens": 1}], ids=str)
def test_attention_maps_are_laid_out_over_all_patches(tiny_model, images, options):
    model = tiny_model(token_merging_r=5, pooling=["cls", "mean"], **options)
    pixel_values = images(model)
    maps, rollout = explain.attention_maps(model, pixel_values, query=0)
    outputs = model.vit(pixel_values, output_attentions=True)
    assert maps.shape == (3, 2 + len(model.vit.class_layers), 4, 4, 4) and rollout.shape == (3, 4, 4)
    last = outputs.attentions[-1][:, :, 0]  # of the first query, to groups
    sums = maps[:, -1].flatten(2).sum(2)
    torch.testing.assert_close(sums, 1 - last[..., : model.config.num_prefix_tokens].sum(-1))
    whole = explain.of_all_tokens(model.vit, outputs)
    weights = explain.pooling_weights(model, whole)
    normed = (whole[:, model.config.num_prefix_tokens :]).mean(1)
    pooled = outputs.pooler_output[:, model.config.hidden_size :]
    torch.testing.assert_close(normed, pooled)
    assert weights.shape == whole.shape[:2]


def test_a_variant_merges_almost_all_its_patches():
    assert HfViTConfig.from_variant("vit_small_patch16_224", token_merging_r=15).token_merging_r == 15
