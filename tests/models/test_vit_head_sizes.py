"""Heads whose channels are not those of the width divided among them."""

import pytest
import torch

from hf_vit import HfViTConfig, HfViTForImageClassification

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8}
SIZES |= {"patch_size": 4, "num_labels": 3}


@pytest.mark.parametrize("fields", [{"head_dim": 4}, {"qk_head_dim": 4, "v_head_dim": 6}, {"v_head_dim": 12}], ids=str)
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_is_that_of_torch(fields, attn_implementation):
    torch.manual_seed(0)
    config = HfViTConfig(**SIZES, **fields, attn_implementation=attn_implementation)
    attention = HfViTForImageClassification(config).eval().vit.layers[0].attention
    states = torch.randn(2, 5, 16)
    qk, v = config.head_dims
    query, key, value = attention.qkv_proj(states).split([2 * qk, 2 * qk, 2 * v], dim=-1)
    heads = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads)
    expected = attention.out_proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(states)[0], expected)


def test_the_width_need_not_be_divisible_with_a_head_size(tmp_path):
    with pytest.raises(ValueError, match=r"multiple of num_attention_heads \(3\), unless head_dim is given"):
        HfViTConfig(**{**SIZES, "num_attention_heads": 3})
    config = HfViTConfig(**{**SIZES, "num_attention_heads": 3, "head_dim": 4})
    model = HfViTForImageClassification(config).eval().bfloat16()
    assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3)
    model.save_pretrained(tmp_path)
    assert HfViTForImageClassification.from_pretrained(tmp_path).config.head_dims == (4, 4)


def test_head_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="qk_head_dim must be at least 1, got 0"):
        HfViTConfig(**SIZES, qk_head_dim=0)
    with pytest.raises(ValueError, match="v_head_dim must be None with num_class_layers 1, got 4"):
        HfViTConfig(**SIZES, v_head_dim=4, num_class_layers=1)
    with pytest.raises(ValueError, match="head size of queries and keys must be a multiple of 4"):
        HfViTConfig(**SIZES, qk_head_dim=6, position_embedding="rope_2d")
