"""Input and configurations that do not fit the Transformer are named; long texts and initial weights as defined."""

import math

import pytest
import torch
from transformer_tools import SIZES, make_model, tokens

from hf_vit import (
    HfTransformerConfig,
    HfTransformerForCausalLM,
    HfTransformerForConditionalGeneration,
    HfTransformerModel,
)


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "relative", "relative_xl", "rope"])
@torch.no_grad()
def test_texts_may_be_longer_than_the_table_of_the_schemes_without_one(position_embedding):
    model = make_model(position_embedding=position_embedding, max_position_embeddings=4)
    assert model(tokens(), decoder_input_ids=tokens()).logits.isfinite().all()


@torch.no_grad()
def test_bad_input_is_named():
    model = make_model(position_embedding="learned", max_position_embeddings=8)
    short = tokens(length=8)
    limit = r"must have at most 8 tokens \(max_position_embeddings\), got"
    with pytest.raises(ValueError, match=f"^input_ids {limit} 9"):
        model(tokens(), decoder_input_ids=short)
    with pytest.raises(ValueError, match=f"^decoder_input_ids {limit} 9"):
        model(short, decoder_input_ids=tokens())
    with pytest.raises(ValueError, match=f"^decoder_input_ids {limit} 9"):
        model.generate(short, max_new_tokens=20, min_new_tokens=20)
    with pytest.raises(
        ValueError, match=r"^input_ids must be in \[0, 40\), got 40: the tokenizer's vocabulary does not"
    ):
        model(torch.full_like(short, 40), decoder_input_ids=short)
    with pytest.raises(ValueError, match=r"decoder_input_ids must be in \[0, 40\), got -1"):
        model(short, decoder_input_ids=torch.full_like(short, -1))
    with pytest.raises(ValueError, match=r"^input_ids must have at least one token, got shape \(2, 0\)"):
        model(torch.zeros(2, 0, dtype=torch.long), decoder_input_ids=short)
    with pytest.raises(
        ValueError, match="exactly one of decoder_input_ids and their embeddings must be given, got neither"
    ):
        model(short)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 40\) or one of -100, 0, got 40"):
        model(short, labels=torch.full((3, 2), 40), decoder_input_ids=short[:, :2])
    with pytest.raises(ValueError, match=r"labels must have shape \(3, 8\), got \(3, 2\)"):
        model(short, labels=short[:, :2], decoder_input_ids=short)
    with pytest.raises(ValueError, match="encoder_hidden_states needs add_cross_attention=True"):
        make_model(HfTransformerForCausalLM)(short, encoder_hidden_states=torch.zeros(3, 2, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30}, r"d_model must be a multiple of encoder_attention_heads \(4\), got 30"),
        ({"decoder_attention_heads": 3}, r"d_model must be a multiple of decoder_attention_heads \(3\), got 32"),
        (
            {"d_model": 12, "position_embedding": "rope"},
            "head size .* must be even for position_embedding=rope, got 3",
        ),
        (
            {"position_embedding": "alibi"},
            "position_embedding must be one of sinusoidal, learned, relative, .*'alibi'",
        ),
        ({"norm_position": "middle"}, "norm_position must be one of post, pre, got 'middle'"),
        ({"position_offset": 2}, "position_offset must be 0 without position_embedding 'learned', got 2"),
        ({"position_offset": -1, "position_embedding": "learned"}, "position_offset must be at least 0, got -1"),
        ({"norm_type": "batch"}, "norm_type must be one of layer_norm, rms_norm, got 'batch'"),
        ({"activation_function": "rely"}, "activation_function must be one of swiglu, .*got 'rely'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"encoder_vocab_size": 50}, r"encoder_vocab_size must equal vocab_size \(40\) with share.*, got 50"),
        ({"eos_token_id": 40}, r"eos_token_id must be in \[0, 40\), got 40"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"decoder_layers": -1}, "decoder_layers must be at least 0, got -1"),
        ({"relative_attention_num_buckets": 5}, "relative_attention_num_buckets must be even and at least 4, got 5"),
        ({"relative_attention_max_distance": 4}, r"relative_attention_max_distance must be above half .*\(4\), got 4"),
        ({"init_std": 0.0}, "init_std must be above 0, got 0.0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HfTransformerConfig(**{**SIZES, **options})


def test_initial_weights_follow_the_configuration():
    sizes = {**SIZES, "d_model": 256, "vocab_size": 500}
    wide = HfTransformerForConditionalGeneration(HfTransformerConfig(**sizes))
    assert wide.get_input_embeddings().weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    projection = wide.model.encoder.layers[0].attention.out_proj.weight
    assert projection.abs().max().item() == pytest.approx(math.sqrt(6 / 512), rel=0.02)
    narrow = HfTransformerForConditionalGeneration(HfTransformerConfig(**sizes, init_std=0.01))
    assert narrow.get_input_embeddings().weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert narrow.model.encoder.layers[0].attention.out_proj.weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    "model_class", [HfTransformerModel, HfTransformerForConditionalGeneration, HfTransformerForCausalLM]
)
def test_tuples_for_a_configuration_that_asks_for_them(model_class):
    model = make_model(model_class)
    inputs = {"input_ids": tokens()}
    if model_class is not HfTransformerForCausalLM:
        inputs["decoder_input_ids"] = tokens(seed=2)
    with torch.no_grad():
        named = model(**inputs, use_cache=False)
        model.config.return_dict = False
        values = model(**inputs, use_cache=False)
    assert isinstance(values, tuple) and not isinstance(named, tuple)
    torch.testing.assert_close(values, named.to_tuple(), atol=0, rtol=0)
