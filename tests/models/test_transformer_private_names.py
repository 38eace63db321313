"""Whatever transformers renames, takes away or breaks of what its `generate` is made of, the texts stay the same."""

import inspect
import logging

import pytest
import torch
from transformer_tools import Collector, make_model, pad, tokens
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation import GenerationMixin
from transformers.generation import utils as generation_utils

from hf_vit.models import fast_generation, tested_versions

SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "three eos": {"eos_token_id": [2, 5, 6], "pad_token_id": 3},
    "three eos, beams": {"eos_token_id": [2, 5, 6], "pad_token_id": 3, "num_beams": 3},
    "no padding": {"pad_token_id": None, "num_beams": 2},
    "processors": {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
}


def make_ending_model():
    model = make_model(lm_head_bias=True)
    model.lm_head.bias.data[2] += 3
    return model


def texts_of(options, streamer=None):
    source, mask = pad([tokens(1, length, seed=length)[0] for length in (9, 5, 1)])
    return make_ending_model().generate(source, attention_mask=mask, max_new_tokens=12, streamer=streamer, **options)


@pytest.fixture(scope="module")
def expected():
    """The texts by transformers' own loops, as it was installed."""
    others = {"return_dict_in_generate": True, "output_scores": True}
    return {name: texts_of({**options, **others}).sequences for name, options in SEARCHES.items()}


@pytest.fixture
def watched(monkeypatch, caplog):
    """`watched()`: how often a search of this package has run since, and what was said meanwhile."""
    runs, make = [], fast_generation.CachedDecoder
    monkeypatch.setattr(fast_generation, "CachedDecoder", lambda *args: runs.append(1) or make(*args))
    monkeypatch.setitem(vars(tested_versions.logger), "said", set())
    caplog.set_level(logging.WARNING)
    return lambda: (len(runs), [record.getMessage() for record in caplog.records if record.name == "hf_vit"])


GENERATE = GenerationMixin.generate


def replace_generate(monkeypatch, change):
    """Let `change(generate, arguments)` take the place of transformers' `generate`, whatever its signature says."""

    def generate(self, *args, **kwargs):
        return change(lambda *args, **kwargs: GENERATE(self, *args, **kwargs), args, kwargs)

    generate.__signature__ = inspect.signature(GENERATE)
    monkeypatch.setattr(GenerationMixin, "generate", generate)
    return generate


def take_the_hook_away(monkeypatch):
    generate = replace_generate(monkeypatch, lambda generate, args, kwargs: generate(*args, **kwargs))
    parameters = [each for each in generate.__signature__.parameters.values() if each.name != "custom_generate"]
    generate.__signature__ = generate.__signature__.replace(parameters=parameters)


def ignore_the_hook(monkeypatch):
    replace_generate(
        monkeypatch, lambda generate, args, kwargs: generate(*args, **{**kwargs, "custom_generate": None})
    )


def prepare_under_other_names(monkeypatch):
    def change(generate, args, kwargs):
        loop = kwargs.pop("custom_generate", None)
        if loop is None:
            return generate(*args, **kwargs)

        def hooked(model, input_ids, logits_processor, **prepared):
            return loop(model, input_ids, processors=logits_processor, **prepared)

        return generate(*args, custom_generate=hooked, **kwargs)

    replace_generate(monkeypatch, change)


def hand_on_what_is_not_known(monkeypatch):
    def change(generate, args, kwargs):
        loop = kwargs.pop("custom_generate", None)
        if loop is None:
            return generate(*args, **kwargs)
        return generate(
            *args, custom_generate=lambda *a, **prepared: loop(*a, bias_of_the_future=1, **prepared), **kwargs
        )

    replace_generate(monkeypatch, change)


def rename(monkeypatch, name, new_name):
    """As the next version might: the loop is called by its new name, and what looked for the old one fails."""
    monkeypatch.setattr(GenerationMixin, new_name, getattr(GenerationMixin, name), raising=False)
    monkeypatch.delattr(GenerationMixin, name)
    for mode, method in list(generation_utils.GENERATION_MODES_MAPPING.items()):
        if method == name:
            monkeypatch.setitem(generation_utils.GENERATION_MODES_MAPPING, mode, new_name)


def hide_tensors(monkeypatch):
    """The special tokens as tensors, which `generate` keeps under private names, are gone when the loop begins."""

    def change(generate, args, kwargs):
        loop = kwargs.pop("custom_generate", None)
        if loop is None:
            return generate(*args, **kwargs)

        def hooked(model, input_ids, generation_config, **prepared):
            for name in [name for name in vars(generation_config) if name.endswith("_tensor")]:
                delattr(generation_config, name)
            return loop(model, input_ids, generation_config=generation_config, **prepared)

        return generate(*args, custom_generate=hooked, **kwargs)

    replace_generate(monkeypatch, change)


def hide_the_mode(monkeypatch):
    """For all but transformers itself, which would fail without it."""
    mode = GenerationConfig.get_generation_mode

    def hidden(self, *args, **kwargs):
        if not inspect.currentframe().f_back.f_globals["__name__"].startswith("transformers."):
            raise AttributeError("'GenerationConfig' object has no attribute 'get_generation_mode'")
        return mode(self, *args, **kwargs)

    monkeypatch.setattr(GenerationConfig, "get_generation_mode", hidden)


# What is done, and whether this package's searches still run.
MUTATIONS = {
    "custom_generate is gone": (take_the_hook_away, False),
    "custom_generate is ignored": (ignore_the_hook, False),
    "custom_generate prepares other names": (prepare_under_other_names, False),
    "custom_generate prepares more": (hand_on_what_is_not_known, False),
    "_sample is renamed": (lambda patch: rename(patch, "_sample", "_sampled"), False),
    "_beam_search is renamed": (lambda patch: rename(patch, "_beam_search", "_beams"), True),
    "_eos_token_tensor and the like are gone": (hide_tensors, True),
    "get_generation_mode is gone": (hide_the_mode, False),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_texts_stay_the_same(monkeypatch, watched, expected, search, mutation):
    change, stays_fast = MUTATIONS[mutation]
    change(monkeypatch)
    for _ in range(2):
        assert torch.equal(texts_of(SEARCHES[search]), expected[search])
    runs, said = watched()
    assert runs == (2 if stays_fast else 0)
    assert len(said) <= 1 and all("fast decoding is not possible" in line and "\n" not in line for line in said)
    assert bool(said) is not stays_fast


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_streamer_gets_each_token_once(monkeypatch, watched, mutation):
    source = tokens(1)
    expected = make_ending_model().generate(source, max_new_tokens=8)[0].tolist()
    MUTATIONS[mutation][0](monkeypatch)
    streamer = Collector()
    make_ending_model().generate(source, max_new_tokens=8, streamer=streamer)
    assert streamer.tokens == expected and streamer.ended


class Failing(LogitsProcessor, StoppingCriteria):
    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        raise self.error


ERRORS = [AttributeError("no"), TypeError("no"), ValueError("no"), RuntimeError("out of memory"), MemoryError("no")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_errors_of_the_users_are_the_users(watched, error, kind, num_beams):
    failing = Failing(error)
    value = failing if kind.startswith("prefix") else [failing]
    with pytest.raises(type(error)) as raised:
        make_model().generate(tokens(), max_new_tokens=4, num_beams=num_beams, **{kind: value})
    assert raised.value is error and failing.calls == 1 and watched()[1] == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_the_encoder_are_the_encoders(watched, error):
    model = make_model()
    failing = Failing(error)
    model.get_encoder().register_forward_pre_hook(lambda *args: failing())
    with pytest.raises(type(error)) as raised:
        model.generate(tokens(), max_new_tokens=4)
    assert raised.value is error and failing.calls == 1 and watched()[1] == []
