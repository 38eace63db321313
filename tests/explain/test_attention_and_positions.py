"""Attention maps, rollout, pooling weights and position pictures against closed forms and the parts of others."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from hf_vit import HfViTModel
from hf_vit.explain import (
    attention_maps,
    attention_of_all_tokens,
    attention_rollout,
    attention_to_grid,
    pooling_weights,
    position_similarity,
    relative_position_bias,
    rotary_kernel,
)
from hf_vit.models.attention import rotate


def random_attention(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)


def offsets(rows, columns):
    """Row and column offsets of every patch from every other, each (rows, columns, rows, columns)."""
    i, j, k, m = np.indices((rows, columns, rows, columns))
    return i - k, j - m


# --- attention -------------------------------------------------------------------------------------------------------


def test_rollout_of_identity_attention_is_the_identity():
    identity = torch.eye(5).expand(2, 3, 5, 5)
    torch.testing.assert_close(attention_rollout([identity] * 4), torch.eye(5).expand(2, 5, 5))


def test_rollout_is_the_product_from_the_last_layer_to_the_first():
    attentions = random_attention(3, 2, 4, 6, 6)  # (layers, batch, heads, tokens, tokens)
    rollout = attention_rollout(list(attentions))
    first, second, third = ((attentions.double().mean(2).numpy() + np.eye(6)) / 2).swapaxes(0, 1)[0]
    np.testing.assert_allclose(rollout[0], np.linalg.multi_dot([third, second, first]), rtol=1e-5)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 6))


def test_rollout_of_even_attention_forgets_half_in_each_layer():
    even = torch.full((1, 2, 4, 4), 1 / 4)
    kept = 0.5**7
    expected = kept * torch.eye(4) + (1 - kept) / 4
    torch.testing.assert_close(attention_rollout([even] * 7)[0], expected)


def test_grid_leaves_out_the_prefix():
    attention = random_attention(2, 3, 8, 8)
    row = attention_to_grid(attention, 1, (2, 3))
    torch.testing.assert_close(row.flatten(2), attention[:, :, 1, 2:])
    weights = torch.tensor([[0.0, 0.0, 0.25, 0.75, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    mixed = attention_to_grid(attention, weights, (2, 3))
    torch.testing.assert_close(mixed[0].flatten(1), 0.25 * attention[0, :, 2, 2:] + 0.75 * attention[0, :, 3, 2:])
    torch.testing.assert_close(mixed[1], row[1])


@pytest.mark.parametrize("larger", [False, True])
def test_maps_are_what_the_model_attends_to(model, images, larger):
    config = model.config
    height, width = (side + larger * patch for side, patch in zip(config.image_shape, config.patch_shape))
    pixel_values = images(model, 2, height, width)
    grid = (height // config.patch_shape[0], width // config.patch_shape[1])
    maps, rollout = attention_maps(model, pixel_values)
    num_layers = config.num_hidden_layers + config.num_class_layers
    assert maps.shape == (2, num_layers, config.num_attention_heads, *grid)
    assert rollout.shape == (2, *grid)

    every_token = torch.eye(config.num_prefix_tokens + grid[0] * grid[1])
    by_token = [attention_maps(model, pixel_values, place) for place in range(len(every_token))]
    attentions = [
        attention_of_all_tokens(attention, len(every_token))
        for attention in model(pixel_values, output_attentions=True).attentions
    ]
    for place, (token_maps, _) in enumerate(by_token):
        expected = torch.stack(attentions, 1)[..., place, config.num_prefix_tokens :]
        torch.testing.assert_close(token_maps.flatten(3), expected)
    if config.poolings == ("cls",):
        expected = by_token[0]
    elif config.poolings == ("mean",):
        expected = [torch.stack(parts[config.num_prefix_tokens :]).mean(0) for parts in zip(*by_token)]
    else:
        weights = pooling_weights(model, model.base_model(pixel_values).last_hidden_state)
        expected = [torch.einsum("bt,tb...->b...", weights, torch.stack(parts)) for parts in zip(*by_token)]
    torch.testing.assert_close(maps, expected[0])
    torch.testing.assert_close(rollout, expected[1])
    if not config.num_prefix_tokens:
        torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(maps.shape[:3]))


# --- pooling weights -------------------------------------------------------------------------------------------------


def weights_and_tokens(model, images):
    tokens = model(images(model)).last_hidden_state.detach()
    return pooling_weights(model, tokens), tokens


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls"},
        {"pooling": "mean"},
        {"pooling": "max"},
        {"pooling": "cls_mean", "cls_mean_weight": 0.3},
        {"pooling": "cls_mean", "cls_mean_weight": 0.3, "learn_cls_mean_weight": True},
    ],
    ids=str,
)
def test_weights_are_the_derivative_of_the_pooled_vector(tiny_model, images, options):
    model = tiny_model(HfViTModel, pooling_norm="before", num_register_tokens=2, **options)
    weights, tokens = weights_and_tokens(model, images)
    tokens.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.pooler(tokens).flatten(1).sum(), tokens)
    torch.testing.assert_close(weights, gradient.mean(-1))


def test_weighted_pooling_is_the_weighted_sum(tiny_model, images):
    model = tiny_model(HfViTModel, pooling="weighted")
    weights, tokens = weights_and_tokens(model, images)
    torch.testing.assert_close(torch.einsum("bt,btd->bd", weights, tokens), model.pooler(tokens).flatten(1))
    assert weights[:, 1:].std() > 1e-3


def test_attention_pooling_has_the_weights_of_torch(tiny_model, images):
    model = tiny_model(HfViTModel, pooling="attention", use_class_token=False)
    weights, tokens = weights_and_tokens(model, images)
    (pooling,) = model.pooler.poolings.values()
    peer = nn.MultiheadAttention(32, 4, batch_first=True)
    peer.in_proj_weight.data = torch.cat((pooling.q_proj.weight, pooling.kv_proj.weight))
    peer.in_proj_bias.data = torch.cat((pooling.q_proj.bias, pooling.kv_proj.bias))
    _, expected = peer(pooling.query.expand(len(tokens), -1, -1), tokens, tokens)  # mean over heads
    torch.testing.assert_close(weights, expected[:, 0])


def test_several_poolings_count_alike(tiny_model, images):
    model = tiny_model(HfViTModel, pooling=["cls", "mean"])
    weights, _ = weights_and_tokens(model, images)
    torch.testing.assert_close(weights, torch.tensor([0.5] + [0.5 / 16] * 16).expand(3, -1))


@pytest.mark.parametrize("use_class_token, first", [(True, 1.0), (False, 1 / 16)])
def test_without_pooling_the_class_token_or_the_mean_is_read(tiny_model, images, use_class_token, first):
    weights, _ = weights_and_tokens(tiny_model(HfViTModel, pooling="none", use_class_token=use_class_token), images)
    torch.testing.assert_close(weights[:, 0], torch.full((3,), first))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_prefix", [True, False])
@pytest.mark.parametrize("grid", [(4, 6), (2, 3)], ids=str)
def test_sincos_similarity_depends_on_offsets_alone(tiny_model, grid, on_prefix):
    """By cos a cos b + sin a sin b = cos(a - b), for the column's half of the channels and the row's."""
    options = {"image_size": [16, 24], "position_embedding_on_prefix": on_prefix, "num_register_tokens": 1}
    rows, columns = ((4 / grid[0]) * offsets(*grid)[0], (6 / grid[1]) * offsets(*grid)[1])
    frequencies = 10_000.0 ** -(np.arange(8) / 8)
    expected = sum(np.cos(axis[..., None] * frequencies).mean(-1) for axis in (rows, columns)) / 2
    similarity = position_similarity(tiny_model(position_embedding="sincos_2d", **options), grid)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    frequencies = 10_000.0 ** -(np.arange(16) / 16)
    expected = np.cos((6 * rows + columns)[..., None] * frequencies).mean(-1)
    similarity = position_similarity(tiny_model(position_embedding="sincos_1d", **options), grid)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)


def test_learned_similarity_is_the_cosine_of_the_table(tiny_model):
    model = tiny_model(image_size=[8, 12], num_register_tokens=2)
    table = model.vit.embeddings.position_embedding.grid.detach().flatten(0, 1).numpy()
    np.testing.assert_allclose(
        position_similarity(model).reshape(6, 6), cosine_similarity(table), rtol=1e-5, atol=1e-6
    )


def test_orthogonal_rows_and_columns_share_half(tiny_model):
    model = tiny_model(position_embedding="learned_2d", image_size=[8, 12])
    positions, basis = model.vit.embeddings.position_embedding, 5 * torch.eye(32)
    positions.rows.data, positions.columns.data = basis[:2][:, None], basis[2:5][None]
    rows, columns = offsets(2, 3)
    np.testing.assert_allclose(position_similarity(model), ((rows == 0) / 2 + (columns == 0) / 2), atol=1e-6)


def test_bias_is_of_the_query_from_the_key(tiny_model, images):
    """With scores that are the bias alone, a patch attends where the table says."""
    model = tiny_model(position_embedding="relative_bias", image_size=[12, 20], num_register_tokens=1)
    for layer in model.vit.layers:
        nn.init.zeros_(layer.attention.qkv_proj.weight)
        nn.init.zeros_(layer.attention.qkv_proj.bias)
    nn.init.constant_(model.vit.relative_position_bias.prefix, -1e4)
    table = relative_position_bias(model)
    assert table.shape == (4, 5, 9)
    for place in range(15):
        maps, _ = attention_maps(model, images(model), 2 + place)
        row, column = divmod(place, 5)
        reached = table[:, row : row + 3, column : column + 5].flip(1, 2)  # keys in raster order
        expected = reached.flatten(1).softmax(-1).view(4, 3, 5)
        torch.testing.assert_close(maps[0, 1], expected)
    assert relative_position_bias(model, (2, 7)).shape == (4, 3, 13)


@pytest.mark.parametrize("on_prefix", [True, False])
@pytest.mark.parametrize("grid", [(3, 5), (4, 2)], ids=str)
def test_rotary_kernel_is_the_product_of_rotated_ones(tiny_model, grid, on_prefix):
    model = tiny_model(
        position_embedding="rope_2d",
        image_size=[12, 20],
        position_embedding_on_prefix=on_prefix,
        num_register_tokens=2,
    )
    tokens = rotate(torch.ones(3 + grid[0] * grid[1], 8), *model.vit.rotary_embedding(grid))[3:]
    products = (tokens @ tokens.T / 8).reshape(*grid, *grid)
    kernel = rotary_kernel(model, grid)
    assert kernel.shape == (2 * grid[0] - 1, 2 * grid[1] - 1)
    rows, columns = offsets(*grid)
    torch.testing.assert_close(kernel[rows + grid[0] - 1, columns + grid[1] - 1], products)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: position_similarity(model), "position_embedding .* learned or .*, got 'rope_2d'"),
        (lambda model: relative_position_bias(model), "position_embedding .* relative_bias, got 'rope_2d'"),
        (lambda model: rotary_kernel(model, (0, 4)), r"grid_size .* got \(0, 4\)"),
        (lambda model: attention_to_grid(torch.eye(4)[None], 4, (2, 2)), "query .* 4 tokens, got 4"),
        (lambda model: attention_to_grid(torch.eye(4)[None], torch.ones(3), (2, 2)), r"query .* got \(3,\)"),
        (lambda model: attention_to_grid(torch.eye(4)[None], 0, (2, 3)), r"grid_size .* 1 to 4 .* got \(2, 3\)"),
        (lambda model: attention_maps(model, torch.zeros(1, 3, 15, 16)), "pixel_values .* multiples"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model(position_embedding="rope_2d"))
