"""Every position scheme against its closed form and against the same scheme of others."""

import math

import numpy as np
import pytest
import torch
from random_weights import randomise
from timm.layers.pos_embed_rel import RelPosBias, gen_relative_position_index
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hf_vit import HfViTModel
from hf_vit.models.attention import rotate
from hf_vit.models.position_encoding import (
    ABSOLUTE_POSITIONS,
    RelativePositionBias,
    RotaryPosition,
    relative_position_index,
    resample_table,
)


def positions(config, grid_size=None):
    """The fixed positions of each token: (tokens, hidden_size)."""
    return ABSOLUTE_POSITIONS[config.position_embedding](config)(grid_size or config.grid_size)[0]


def sines(position, size):
    """One row of the table of "Attention Is All You Need", sines first."""
    angles = [position / 10_000 ** (2 * i / size) for i in range(size // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


@pytest.mark.parametrize("on_prefix", [True, False])
def test_sincos_1d_counts_the_tokens(tiny_config, on_prefix):
    config = tiny_config(
        position_embedding="sincos_1d",
        position_embedding_on_prefix=on_prefix,
        num_register_tokens=2,
        image_size=[8, 12],
    )
    expected = torch.tensor([sines(position, 32) for position in range(6 + (3 if on_prefix else 0))])
    torch.testing.assert_close(positions(config), expected)


def test_sincos_2d_is_the_table_of_mae(tiny_config):
    config = tiny_config(position_embedding="sincos_2d", image_size=[32, 48])
    rows_first = build_2d_sinusoidal_position_embedding(8, 12, embed_dim=32)
    columns_first = rows_first.roll(16, dims=1)  # as MAE's weights have it
    torch.testing.assert_close(positions(config), columns_first)


@pytest.mark.parametrize("rows,columns", [(2, 3), (4, 6), (1, 3)])
def test_sincos_2d_follows_other_sizes(tiny_config, rows, columns):
    """Column in the first half, row in the second; a patch has the place that its centre has on the native grid."""
    config = tiny_config(position_embedding="sincos_2d", image_size=[8, 12])
    expected = []
    for row in range(rows):
        for column in range(columns):
            places = ((column + 0.5) * 3 / columns - 0.5, (row + 0.5) * 2 / rows - 0.5)
            expected.append(sines(places[0], 16) + sines(places[1], 16))
    torch.testing.assert_close(positions(config, (rows, columns)), torch.tensor(expected))


@pytest.mark.parametrize("position_embedding", ["learned", "learned_2d"])
def test_learned_positions_are_rows_of_the_table(tiny_config, position_embedding):
    config = tiny_config(position_embedding=position_embedding, image_size=[8, 12], use_distillation_token=True)
    module = randomise(ABSOLUTE_POSITIONS[position_embedding](config))
    got = module(config.grid_size)[0]
    assert got.shape == (2 + 6, 32)
    assert torch.equal(got[:2], module.prefix)
    for row in range(2):
        for column in range(3):
            summed = position_embedding == "learned_2d"
            expected = module.rows[row, 0] + module.columns[0, column] if summed else module.grid[row, column]
            assert torch.equal(got[2 + row * 3 + column], expected)


@pytest.mark.parametrize("position_embedding", ["learned", "learned_2d", "sincos_1d", "sincos_2d"])
@pytest.mark.parametrize("on_prefix", [True, False])
def test_embeddings_are_prefix_tokens_then_patches_with_their_positions(tiny_config, position_embedding, on_prefix):
    config = tiny_config(
        position_embedding=position_embedding,
        position_embedding_on_prefix=on_prefix,
        use_distillation_token=True,
        num_register_tokens=3,
    )
    embeddings = randomise(HfViTModel(config).embeddings)
    pixel_values = torch.randn(2, 3, 16, 16)
    tokens = torch.cat((embeddings.class_token, embeddings.distillation_token, embeddings.register_tokens), dim=1)
    expected = torch.cat((tokens.expand(2, -1, -1), embeddings.patch_embedding(pixel_values, (4, 4))), dim=1)
    assert config.num_prefix_tokens == 5 and expected.shape[1] == 5 + 16
    table = embeddings.position_embedding((4, 4))[0]
    assert len(table) == (21 if on_prefix else 16)
    expected[:, -len(table) :] += table
    torch.testing.assert_close(embeddings(pixel_values, (4, 4)), expected)


@pytest.mark.parametrize("height,width", [(32, 32), (64, 48), (16, 8)])
def test_rotary_embedding_is_that_of_dinov3(tiny_config, height, width):
    config = tiny_config(position_embedding="rope_2d", image_size=32, num_register_tokens=2)
    peer = dinov3.DINOv3ViTRopePositionEmbedding(
        DINOv3ViTConfig(hidden_size=32, num_attention_heads=4, image_size=32, patch_size=4, rope_theta=100.0)
    ).eval()
    cos, sin = RotaryPosition(config)((height // 4, width // 4))
    peer_cos, peer_sin = peer(torch.zeros(1, 3, height, width))
    torch.testing.assert_close(cos[3:], peer_cos, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sin[3:], peer_sin, atol=1e-5, rtol=1e-5)
    query, key = torch.randn(2, 2, 4, len(cos), 8)
    expected = dinov3.apply_rotary_pos_emb(query, key, peer_cos, peer_sin)
    got = rotate(query, cos, sin), rotate(key, cos, sin)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[0][:, :, :3], query[:, :, :3])


def test_rotary_scores_depend_on_offsets_alone(tiny_config):
    torch.manual_seed(0)
    config = tiny_config(position_embedding="rope_2d", image_size=[16, 24])
    cos, sin = (table[1:] for table in RotaryPosition(config)(config.grid_size))
    query, key = torch.randn(2, 8).unsqueeze(1).expand(2, 24, 8)
    scores = rotate(query, cos, sin) @ rotate(key, cos, sin).T
    by_offset = {}
    for i in range(24):
        for j in range(24):
            by_offset.setdefault((i // 6 - j // 6, i % 6 - j % 6), []).append(scores[i, j].item())
    assert len(by_offset) == 7 * 11
    assert max(max(same) - min(same) for same in by_offset.values()) < 1e-4
    assert np.std([same[0] for same in by_offset.values()]) > 0.1


@pytest.mark.parametrize("grid_size", [(3, 3), (2, 5), (1, 4), (1, 1)], ids=str)
def test_relative_position_bias_is_that_of_beit_and_swin(tiny_config, grid_size):
    rows, columns = grid_size
    assert torch.equal(relative_position_index(grid_size), gen_relative_position_index(grid_size))
    config = tiny_config(position_embedding="relative_bias", image_size=[4 * rows, 4 * columns])
    module = randomise(RelativePositionBias(config))
    peer = RelPosBias(grid_size, num_heads=4, prefix_tokens=1)
    peer.relative_position_bias_table.data = torch.cat((module.grid.flatten(0, 1), module.prefix))
    torch.testing.assert_close(module(grid_size), peer.get_bias())


def test_relative_position_bias_of_several_prefix_tokens(tiny_config):
    options = {"position_embedding": "relative_bias", "num_register_tokens": 2}
    module = randomise(RelativePositionBias(tiny_config(**options)))
    bias = module((4, 4))[0]
    assert bias.shape == (4, 19, 19)
    for block, entry in ((bias[:, :3, 3:], 0), (bias[:, 3:, :3], 1), (bias[:, :3, :3], 2)):
        assert torch.equal(block, module.prefix[entry][:, None, None].expand_as(block))
    without = randomise(RelativePositionBias(tiny_config(**options, position_embedding_on_prefix=False)))((4, 4))[0]
    assert without[:, :3].abs().max() == without[:, :, :3].abs().max() == 0
    assert without[:, 3:, 3:].abs().min() > 0


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (8, 8), (1, 9), (2, 1)], ids=str)
@pytest.mark.parametrize("native", [(4, 4), (4, 1), (1, 4)], ids=str)
def test_resampling_treats_rows_as_columns_and_keeps_levels(native, size):
    table = torch.randn(*native, 3, generator=torch.Generator().manual_seed(0))
    resampled = resample_table(table, size)
    assert resampled.shape == (*size, 3)
    torch.testing.assert_close(resampled, resample_table(table.transpose(0, 1), size[::-1]).transpose(0, 1))
    torch.testing.assert_close(resample_table(torch.full_like(table, 0.7), size), torch.full((*size, 3), 0.7))
