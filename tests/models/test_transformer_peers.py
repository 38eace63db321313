"""The same weights give the same logits and the same texts as in transformers."""

import pytest
import torch
import transformers
from random_weights import randomise
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention
from translators import BART, MARIAN, T5, batch

from hf_vit import HfTransformerConfig
from hf_vit.conversion.models import from_peer
from hf_vit.models.text_position import RelativeXLSelfAttention, RelativeXLTextPosition


def assert_same(peer, ours):
    with torch.no_grad():
        expected, got = peer(**batch(), output_hidden_states=True), ours(**batch(), output_hidden_states=True)
    assert expected.logits.std() > 0.05
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.encoder_hidden_states[1][0], expected.encoder_hidden_states[1][0])
    inputs = {name: value for name, value in batch().items() if name != "decoder_input_ids"}
    for options in ({}, {"num_beams": 3, "length_penalty": 0.6}):
        options = {"max_new_tokens": 12, **options}
        assert torch.equal(ours.generate(**inputs, **options), peer.generate(**inputs, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_encoder_decoder_embeddings": False, "scale_embedding": False},
        {"tie_word_embeddings": False, "activation_function": "relu"},
    ],
    ids=str,
)
def test_logits_and_texts_equal_those_of_marian(options):
    peer = randomise(transformers.MarianMTModel(transformers.MarianConfig(**{**MARIAN, **options})))
    peer.final_logits_bias.copy_(torch.randn(peer.final_logits_bias.shape, generator=torch.Generator().manual_seed(2)))
    assert_same(peer, from_peer(peer))


@pytest.mark.parametrize("name", ["Bart", "MBart"])
@pytest.mark.parametrize("options", [{}, {"scale_embedding": False, "tie_word_embeddings": False}], ids=str)
def test_logits_and_texts_equal_those_of_bart(name, options):
    config = getattr(transformers, f"{name}Config")(**{**BART, **options})
    peer = randomise(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    peer.final_logits_bias.copy_(torch.randn(peer.final_logits_bias.shape, generator=torch.Generator().manual_seed(2)))
    ours = from_peer(peer)
    assert ours.model.encoder.token_position.weight.shape[0] == BART["max_position_embeddings"] + 2
    assert_same(peer, ours)
    longest = torch.full((1, BART["max_position_embeddings"] + 1), 5)
    with pytest.raises(ValueError, match="must have at most 64 tokens"):
        ours(input_ids=longest, decoder_input_ids=longest[:, :3])


def test_attentions_equal_those_of_marian():
    peer = randomise(
        transformers.MarianMTModel._from_config(transformers.MarianConfig(**MARIAN), attn_implementation="eager")
    )
    ours = from_peer(peer)
    assert ours.config._attn_implementation == "sdpa"
    with torch.no_grad():
        expected, got = peer(**batch(), output_attentions=True), ours(**batch(), output_attentions=True)
    for name, count in {"encoder_attentions": 2, "decoder_attentions": 3, "cross_attentions": 3}.items():
        assert len(got[name]) == len(expected[name]) == count
        tokens = batch()["attention_mask"] if name == "encoder_attentions" else torch.ones(3, 33)
        for weights, peer_weights in zip(got[name], expected[name]):
            weights, peer_weights = (tensor * tokens[:, None, :, None] for tensor in (weights, peer_weights))
            torch.testing.assert_close(weights, peer_weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {"feed_forward_proj": "gated-silu"}],
    ids=str,
)
def test_logits_and_texts_equal_those_of_t5(options):
    peer = randomise(transformers.T5ForConditionalGeneration(transformers.T5Config(**{**T5, **options})), scale=0.3)
    assert_same(peer, from_peer(peer))


@pytest.mark.parametrize("is_causal", [False, True])
def test_relative_xl_attention_equals_that_of_xlnet(is_causal):
    config = HfTransformerConfig(vocab_size=9, d_model=32, encoder_attention_heads=4, use_bias=False)
    config._attn_implementation = "eager"
    ours = randomise(RelativeXLSelfAttention(config, 4, is_causal=is_causal, output_bias=False))
    peer_config = transformers.XLNetConfig(d_model=32, n_head=4, d_inner=8, n_layer=1, vocab_size=9, dropout=0.0)
    peer = XLNetRelativeAttention(peer_config).eval()
    shape = (32, 4, 8)  # (d_model, heads, head size)
    query, key, value = ours.qkv_proj.weight.data.chunk(3)
    for parameter, weight in ((peer.q, query), (peer.k, key), (peer.v, value), (peer.r, ours.r_proj.weight.data)):
        parameter.data = weight.t().reshape(shape)
    peer.o.data = ours.out_proj.weight.data.reshape(shape)
    peer.r_w_bias.data, peer.r_r_bias.data = ours.content_bias.data[:, 0], ours.position_bias.data[:, 0]

    num_tokens = 7
    hidden_states = torch.randn(2, num_tokens, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    mask = mask.tril() if is_causal else mask
    slots = torch.arange(num_tokens)
    positions = RelativeXLTextPosition(config, 4, is_causal)(slots[None], slots, num_tokens)
    with torch.no_grad():
        got, weights = ours(hidden_states, attention_mask=mask[None, None], **positions)
        encodings = XLNetModel(peer_config).relative_positional_encoding(num_tokens, num_tokens, bsz=2)
        attended, peer_weights = peer.rel_attn_core(
            *(torch.einsum("bih,hnd->ibnd", hidden_states, parameter) for parameter in (peer.q, peer.k, peer.v)),
            torch.einsum("ibh,hnd->ibnd", encodings, peer.r),
            attn_mask=(~mask).float()[:, :, None, None],
            output_attentions=True,
        )
        expected = torch.einsum("ibnd,hnd->bih", attended, peer.o)
    torch.testing.assert_close(weights, peer_weights.permute(2, 3, 0, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_foreign_models_are_refused():
    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**T5, "d_kv": 4}))
    with pytest.raises(ValueError, match=r"d_kv \* num_heads must equal d_model \(32\), got 4 \* 4"):
        from_peer(peer)
    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**T5, "feed_forward_proj": "gelu"}))
    with pytest.raises(ValueError, match="feed_forward_proj must be one of relu, gated-gelu, gated-silu, got 'gelu'"):
        from_peer(peer)
