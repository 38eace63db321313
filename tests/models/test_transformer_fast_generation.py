"""Greedy and beam search of our own give the texts of transformers' generate, token for token."""

import copy

import pytest
import torch
from transformer_tools import ARCHITECTURES, Collector, make_model, pad, tokens
from transformers import StoppingCriteria

from hf_vit import HfTransformerForConditionalGeneration
from hf_vit.models import fast_generation

every_architecture = pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)


@pytest.fixture
def fast_calls(monkeypatch):
    """One entry for each search of our own."""
    calls, make = [], fast_generation.CachedDecoder
    monkeypatch.setattr(fast_generation, "CachedDecoder", lambda *args: calls.append(1) or make(*args))
    return calls


def make_ending_model(bias=3.0, **options):
    """A model that ends some texts early."""
    model = make_model(**{**options, "lm_head_bias": True})
    model.lm_head.bias.data[2] += bias
    return model


def slow_generate(model, *args, **options):
    """The texts by transformers' loops, which give the scores too."""
    return model.generate(*args, **options, return_dict_in_generate=True, output_scores=True).sequences


def assert_same_texts(model, fast_calls, is_fast=True, side="right", **options):
    fast_calls.clear()
    source, mask = pad([tokens(1, length, seed=length)[0] for length in (9, 5, 1)], side)
    options = {"attention_mask": mask, "max_new_tokens": 14, **options}
    got = model.generate(source, **options)
    assert bool(fast_calls) is is_fast
    assert torch.equal(got, slow_generate(model, source, **options))


@every_architecture
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_architecture(fast_calls, options, num_beams, side):
    is_fast = options.get("position_embedding") != "relative_xl"
    assert_same_texts(make_ending_model(**options), fast_calls, is_fast, side, num_beams=num_beams)


def test_no_texts_have_no_translations(fast_calls):
    none = tokens(0)
    assert make_model().generate(none, attention_mask=none, max_new_tokens=4).shape[0] == 0
    assert fast_calls


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("bias", [0.0, 4.0, 8.0])
def test_beams_end_by_the_same_rules(fast_calls, early_stopping, length_penalty, bias):
    assert_same_texts(
        make_ending_model(bias),
        fast_calls,
        num_beams=5,
        num_return_sequences=2,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
    )


OPTIONS = {
    "one token": {"max_new_tokens": 1},
    "forced tokens": {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
    "no n-gram twice": {"no_repeat_ngram_size": 2},
    "minimal length": {"min_new_tokens": 6},
    "suppressed tokens": {"suppress_tokens": [3, 4, 5]},
    "three eos": {"eos_token_id": [2, 5, 6], "pad_token_id": 3},
    "no end": {"eos_token_id": None},
    "end is padding": {"pad_token_id": 2},
    "beginnings": {"decoder_input_ids": torch.tensor([[1, 9, 8]] * 3)},
    "more than the cache's first size": {"max_new_tokens": 80, "eos_token_id": None},
}


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_generate(fast_calls, options, num_beams):
    assert_same_texts(make_ending_model(), fast_calls, num_beams=num_beams, **options)


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


OTHERS = {
    "sampling": {"do_sample": True, "top_k": 1},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "own criterion": {"num_beams": 2, "stopping_criteria": [Never()]},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_the_rest_goes_to_transformers(fast_calls, options):
    assert_same_texts(make_ending_model(), fast_calls, is_fast=False, **options)


def test_hooks_see_every_layer(fast_calls):
    model, seen = make_ending_model(), []
    model.model.decoder.layers[1].register_forward_hook(lambda *args: seen.append(1))
    model.generate(tokens(), max_new_tokens=4)
    assert seen and not fast_calls


def test_recording_attentions_once_makes_nothing_slower(fast_calls):
    model = make_ending_model()
    model(tokens(), decoder_input_ids=tokens(), output_attentions=True)
    assert_same_texts(model, fast_calls)


@pytest.mark.parametrize("position_embedding", ["sinusoidal", "relative", "rope"])
def test_texts_that_have_ended_are_not_decoded_further(monkeypatch, position_embedding):
    given, step = [], fast_generation.CachedDecoder.__call__
    monkeypatch.setattr(
        fast_generation.CachedDecoder, "__call__", lambda self, ids: given.append(len(ids)) or step(self, ids)
    )
    model = make_model(position_embedding=position_embedding, tie_word_embeddings=False)
    source, mask = pad([tokens(1, length, seed=length)[0] for length in range(2, 22)])
    options = {"attention_mask": mask, "max_new_tokens": 20, "eos_token_id": list(range(2, 9)), "pad_token_id": 0}
    texts = model.generate(source, **options)
    assert torch.equal(texts, slow_generate(model, source, **options))
    is_end = (texts[:, 1:] < 9).cumsum(1) > 0
    needed = [20, *(~is_end).sum(0).tolist()[:-1]]  # texts that go on, before every step
    assert given[0] == 20 and given[-1] <= 10
    assert all(least <= count < max(2 * least, 2) for least, count in zip(needed, given, strict=True))


def test_a_streamer_gets_each_token_as_it_comes(fast_calls):
    streamer = Collector()
    texts = make_ending_model().generate(tokens(1), max_new_tokens=8, streamer=streamer)
    assert streamer.tokens == texts[0].tolist() and streamer.ended and fast_calls


class Negated(HfTransformerForConditionalGeneration):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = -outputs.logits
        return outputs


def test_subclasses_compute_for_themselves(fast_calls):
    model = make_ending_model()
    model.__class__ = Negated
    assert_same_texts(model, fast_calls, is_fast=False)
    layer = type(model.model.decoder.layers[1].mlp)
    model = make_ending_model()
    model.model.decoder.layers[1].mlp.__class__ = type("Doubled", (layer,), {"forward": lambda self, x: 2 * x})
    assert_same_texts(model, fast_calls, is_fast=False)


def test_a_decoder_without_layers_generates(fast_calls):
    assert_same_texts(make_ending_model(decoder_layers=0), fast_calls, is_fast=False, num_beams=3)


def test_tokens_that_the_decoder_does_not_know_are_named(fast_calls):
    with pytest.raises(ValueError, match=r"decoder_input_ids must be in \[0, 40\), got 41"):
        make_model().generate(tokens(1), decoder_input_ids=torch.tensor([[1, 41]]), max_new_tokens=3)


@pytest.mark.parametrize("num_columns", [32_000, 50_021, 1_100, 300])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_best_scores_of_many_columns(num_columns, count):
    generator = torch.Generator().manual_seed(num_columns)
    scores = torch.randn(max(4, 200_000 // num_columns), num_columns, generator=generator)
    scores[0, -1] = scores[1, 0] = 9.0  # in the rest after the blocks, where there is one, and in the first
    scores[2] = -torch.inf
    scores[3, 2 * num_columns // 3 :] = scores[3, num_columns // 3] = 5.0  # the likeliest many times
    best, places = fast_generation._topk(scores, count)
    assert torch.equal(best, scores.topk(count).values)
    assert torch.equal(scores.gather(1, places), best)
    assert all(len(set(row)) == count for row in places.tolist())
    if count == 1:
        assert places[:, 0].tolist() == scores.numpy().argmax(1).tolist()


def test_bfloat16_is_the_models_own(fast_calls):
    model, ids = make_model().bfloat16(), tokens(length=6, seed=2)
    with torch.no_grad():
        expected = model(tokens(), decoder_input_ids=ids).logits[:, -1]
        decoder = fast_generation.CachedDecoder(model, model.get_encoder()(tokens()).last_hidden_state)
        got = decoder(ids)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("num_beams", [1, 4])
def test_int8_weights_are_rounded_and_generate(fast_calls, num_beams):
    model, states = make_model(), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.linear(states, model.lm_head.weight)
    model.quantize_dynamic()
    got = model.lm_head(states)
    assert 0 < (got - expected).abs().max() < 0.02 * expected.abs().max()
    assert not any(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert_same_texts(copy.deepcopy(model), fast_calls, num_beams=num_beams)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_int8_weights_take_inputs_of_any_precision(dtype):
    layer = make_model().quantize_dynamic().lm_head
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(layer(states), layer(states.float()).to(dtype))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_int8_models_generate_under_autocast(num_beams):
    model = make_model().quantize_dynamic()
    with torch.autocast("cpu", torch.bfloat16):
        texts = model.generate(tokens(2), num_beams=num_beams, max_new_tokens=4)
    assert texts.shape[0] == 2 and texts.shape[1] > 1


def test_int8_models_cannot_be_trained_or_saved(tmp_path):
    with pytest.raises(ValueError, match="must be in eval mode to be quantized to int8"):
        make_model().train().quantize_dynamic()
    with pytest.raises(ValueError, match=r"must be in float32 on a CPU .* got torch.bfloat16 on cpu"):
        make_model().bfloat16().quantize_dynamic()
    with pytest.raises(ValueError, match="quantized to int8 cannot be saved"):
        make_model().quantize_dynamic().save_pretrained(tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
    with pytest.raises(ValueError, match="quantized to int8 cannot be saved"):
        make_model().quantize_dynamic().lm_head.state_dict()
    with pytest.raises(ValueError, match="quantized to int8 cannot be trained"):
        make_model().quantize_dynamic().train()
