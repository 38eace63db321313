"""Every way of decoding that transformers offers works, and gives what it is defined to give."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformer_tools import ARCHITECTURES, VOCAB_SIZE, Collector, make_model, pad, tokens

from hf_vit import HfTransformerForCausalLM

every_architecture = pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
CACHES = {"dynamic": {}, "none": {"use_cache": False}, "static": {"cache_implementation": "static"}}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# Random models would repeat one token, whatever they are given.
DISTINCT = {"no_repeat_ngram_size": 1, "suppress_tokens": [0, 1]}


def greedy(step, target, length):
    """The texts that taking the likeliest distinct token over and over gives, and the logits on the way.

    Args:
        step: maps texts (batch, tokens) to the logits of their next token (batch, vocabulary).
        target: the beginnings of the texts.
    """
    all_logits = []
    for _ in range(length):
        logits = step(target)
        all_logits.append(logits)
        used = torch.cat((target, torch.tensor([[0, 1]]).expand(len(target), -1)), 1)
        target = torch.cat((target, logits.scatter(1, used, -torch.inf).argmax(-1, keepdim=True)), 1)
    return target, torch.stack(all_logits)


def translate(model, source, length, target=None, **options):
    """[`greedy`] for a translator, without a cache."""
    target = torch.ones(len(source), 1, dtype=torch.long) if target is None else target
    return greedy(lambda target: model(source, decoder_input_ids=target, **options).logits[:, -1], target, length)


def generate(model, *args, **options):
    """Texts and logits by `generate`."""
    outputs = model.generate(*args, **DISTINCT, **options, return_dict_in_generate=True, output_logits=True)
    return outputs.sequences, torch.stack(outputs.logits)


def assert_same(got, expected):
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], atol=1e-4, rtol=1e-5)


def without_end(**options):
    """A model that is never made to stop."""
    model = make_model(**options)
    model.generation_config.eos_token_id = None
    return model


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_greedy_search_takes_the_likeliest_token(options, side, cache):
    model = without_end(**options)
    source, mask = pad([tokens(1, length)[0] for length in (9, 5, 1)], side)
    got = generate(model, source, attention_mask=mask, max_new_tokens=12, **cache)
    assert_same(got, translate(model, source, 12, attention_mask=mask))


@pytest.mark.parametrize("options", [{}, ARCHITECTURES["rope-pre-swiglu"]], ids=["shared", "separate"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_beam_search_over_all_tokens_finds_the_best_text(options, cache):
    model, source = without_end(**options), tokens(2)
    best = []
    for row in source:
        targets = torch.cartesian_prod(torch.tensor([1]), *[torch.arange(VOCAB_SIZE)] * 2)  # (1600, 3)
        logits = model(row.expand(len(targets), -1), decoder_input_ids=targets).logits.log_softmax(-1)
        scores = logits[:, :-1].gather(2, targets[:, 1:, None]).sum((1, 2))
        best.append((targets[scores.argmax()], scores.max()))
    got = model.generate(
        source, max_new_tokens=2, num_beams=VOCAB_SIZE, return_dict_in_generate=True, output_scores=True, **cache
    )
    assert torch.equal(got.sequences, torch.stack([target for target, _ in best]))
    # The score is the mean over the tokens, the length penalty's default.
    torch.testing.assert_close(got.sequences_scores, torch.stack([score for _, score in best]) / 2)


def test_the_length_penalty_chooses_among_lengths():
    model, source = make_model(lm_head_bias=True), tokens()
    model.lm_head.bias[2] += 8  # ending is likely at every step
    options = {"num_beams": 4, "max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True}
    lengths = {}
    for length_penalty in (-4.0, 4.0):
        outputs = model.generate(source, length_penalty=length_penalty, **options)
        targets = outputs.sequences
        lengths[length_penalty] = (targets != 0).sum(1) - 1
        logits = model(source, decoder_input_ids=targets).logits.log_softmax(-1)
        scores = logits[:, :-1].gather(2, targets[:, 1:, None])[..., 0] * (targets[:, 1:] != 0)
        torch.testing.assert_close(outputs.sequences_scores, scores.sum(1) / lengths[length_penalty] ** length_penalty)
    assert (lengths[-4.0] <= lengths[4.0]).all() and (lengths[-4.0] < lengths[4.0]).any()


def test_sampling_follows_the_seed_and_the_distribution():
    model, source = without_end(), tokens()

    def sample(seed, **options):
        torch.manual_seed(seed)
        return model.generate(source, do_sample=True, **{"max_new_tokens": 8, "top_k": 0, **options})

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert torch.equal(sample(0, top_k=1, **DISTINCT), translate(model, source, 8)[0])
    drawn = sample(0, max_new_tokens=1, num_return_sequences=4000)[:, 1].view(3, 4000)
    expected = model(source, decoder_input_ids=torch.ones(3, 1, dtype=torch.long)).logits[:, 0].softmax(-1)
    shares = torch.stack([row.bincount(minlength=VOCAB_SIZE) for row in drawn]) / 4000
    assert (shares - expected).abs().max() < 0.04  # five standard deviations of the least certain share


def test_no_n_gram_comes_twice_when_blocked():
    model = without_end()

    def has_repetition(**options):
        texts = model.generate(tokens(), max_new_tokens=30, **options)[:, 1:].tolist()
        pairs = [list(itertools.pairwise(text)) for text in texts]
        return [len(set(text_pairs)) < len(text_pairs) for text_pairs in pairs]

    assert any(has_repetition())
    assert not any(has_repetition(no_repeat_ngram_size=2))
    assert not any(has_repetition(no_repeat_ngram_size=2, num_beams=3))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_forced_tokens_are_where_they_must_be(num_beams):
    texts = make_model().generate(
        tokens(), forced_bos_token_id=7, forced_eos_token_id=2, max_new_tokens=6, min_new_tokens=6, num_beams=num_beams
    )
    assert texts[:, :2].tolist() == [[1, 7]] * 3
    assert texts[:, -1].tolist() == [2] * 3
    texts = make_model().generate(tokens(), decoder_input_ids=torch.tensor([[1, 9, 8]] * 3), max_new_tokens=3)
    assert texts[:, :3].tolist() == [[1, 9, 8]] * 3


def test_generation_stops_at_the_end_of_each_text():
    model, source = make_model(), tokens()
    texts, _ = translate(model, source, 12)
    eos = int(texts[0, 4])
    got = model.generate(source, eos_token_id=eos, max_new_tokens=12, **DISTINCT)
    for text, expected in zip(got, texts):
        found = (expected[1:] == eos).nonzero()
        stop = int(found[0]) + 2 if len(found) else len(expected)
        assert torch.equal(text[: min(stop, len(text))], expected[: min(stop, len(text))])
        assert not text[stop:].any()


def test_a_streamer_gets_each_token():
    model, streamer = make_model(), Collector()
    expected = model.generate(tokens(1), max_new_tokens=8, streamer=streamer)
    assert streamer.tokens == expected[0].tolist() and streamer.ended


@every_architecture
def test_assisted_decoding_changes_no_text(options):
    model, source = without_end(**options), tokens(1)
    assistant = make_model(**{**options, "decoder_layers": 1, "encoder_layers": 1})
    assistant.generation_config.eos_token_id = None
    expected, _ = translate(model, source, 12)
    for helper in (model, assistant):
        assert torch.equal(model.generate(source, assistant_model=helper, max_new_tokens=12, **DISTINCT), expected)


def test_attentions_of_each_step_are_returned():
    outputs = make_model().generate(
        tokens(), max_new_tokens=4, min_new_tokens=4, output_attentions=True, return_dict_in_generate=True
    )
    assert len(outputs.decoder_attentions) == len(outputs.cross_attentions) == 4
    for step, (own, cross) in enumerate(zip(outputs.decoder_attentions, outputs.cross_attentions)):
        assert [tuple(weights.shape) for weights in own] == [(3, 2, 1, step + 1)] * 3
        assert [tuple(weights.shape) for weights in cross] == [(3, 2, 1, 9)] * 3
    assert len(outputs.encoder_attentions) == 2


@every_architecture
def test_all_decoding_steps_over_a_static_cache_are_one_graph(options):
    torch._dynamo.reset()
    model, graphs = without_end(**options), CompileCounter()
    expected = translate(model, tokens(), 8)
    model.forward = torch.compile(model.forward, backend=graphs, fullgraph=True)
    options = {"max_new_tokens": 8, "cache_implementation": "static", "disable_compile": True}
    for _ in range(2):
        assert_same(generate(model, tokens(), **options), expected)
        assert graphs.frame_count == 2  # the first step, which fills the cache, and all others


@every_architecture
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_prompts_of_a_language_model_may_differ_in_length(options, cache):
    if "encoder_vocab_size" in options:
        options = {name: value for name, value in options.items() if name != "encoder_vocab_size"}
    model = make_model(HfTransformerForCausalLM, **options)
    model.generation_config.eos_token_id = None
    prompts = [tokens(1, length)[0] for length in (7, 4, 1)]
    ids, mask = pad(prompts, side="left")
    texts, logits = generate(model, ids, attention_mask=mask, max_new_tokens=8, **cache)
    for i, prompt in enumerate(prompts):
        expected = greedy(lambda text: model(text, use_cache=False).logits[:, -1], prompt[None], 8)
        assert_same((texts[i : i + 1, 7 - len(prompt) :], logits[:, i : i + 1]), expected)


@every_architecture
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_beginnings_of_targets_may_differ_in_length(options, cache):
    model, source = without_end(**options), tokens()
    beginnings = [torch.cat((torch.tensor([1]), tokens(1, length, seed=2)[0])) for length in (4, 2, 0)]
    target, mask = pad(beginnings, side="left")
    options = {"decoder_input_ids": target, "decoder_attention_mask": mask, "max_new_tokens": 8, **cache}
    texts, logits = generate(model, source, **options)
    for i, beginning in enumerate(beginnings):
        expected = translate(model, source[i : i + 1], 8, target=beginning[None])
        assert_same((texts[i : i + 1, 5 - len(beginning) :], logits[:, i : i + 1]), expected)
