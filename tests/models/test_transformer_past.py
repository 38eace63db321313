"""The cache goes in and out under either of transformers' names, and a decoder that has lost its past says so."""

import pytest
import torch
import transformers
from transformer_tools import ARCHITECTURES, make_model, tokens
from transformers import DynamicCache, EncoderDecoderCache, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.generation import GenerationMixin

from hf_vit import HfTransformerConfig, HfTransformerForCausalLM, HfViTConfig
from hf_vit.models.cache_argument import CACHE_NAME
from hf_vit.models.tested_versions import TESTED_TRANSFORMERS

NAMES = ("past_key_values", "cache")
VERSIONS = "tested with transformers {} to {}, this is {}".format(*TESTED_TRANSFORMERS, transformers.__version__)
every_architecture = pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def slowly(model, *args, **options):
    """`generate` step by step through the model, with what it returns beside the texts."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, **options}
    return model.generate(*args, return_dict_in_generate=True, **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_taken_under_either_name(name):
    model, source, target = make_model(), tokens(), tokens(seed=2)
    expected = model(source, decoder_input_ids=target).logits
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        outputs = model(source, decoder_input_ids=target[:, start:stop], use_cache=True, **{name: cache})
        assert outputs[CACHE_NAME] is cache
        torch.testing.assert_close(outputs.logits, expected[:, start:stop], atol=1e-5, rtol=1e-5)
    body = model.model(source, decoder_input_ids=target[:, :2], use_cache=True)
    again = model.model(source, decoder_input_ids=target[:, 2:3], **{name: body[CACHE_NAME]})
    torch.testing.assert_close(model.lm_head(again.last_hidden_state), expected[:, 2:3], atol=1e-5, rtol=1e-5)

    language_model = make_model(HfTransformerForCausalLM)
    expected = language_model(target).logits
    past = language_model(target[:, :5], use_cache=True)[CACHE_NAME]
    got = language_model(target[:, 5:], **{name: past}).logits
    torch.testing.assert_close(got, expected[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_generate_goes_on_from_a_cache_under_either_name(name):
    model, source = make_model(), tokens()
    expected = slowly(model, source).sequences
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    beginning = slowly(model, source, max_new_tokens=3, min_new_tokens=3, **{name: cache}).sequences
    got = slowly(model, source, max_new_tokens=3, min_new_tokens=3, decoder_input_ids=beginning, **{name: cache})
    assert torch.equal(got.sequences, expected)


def test_a_cache_under_both_names_is_refused():
    model, cache = make_model(), DynamicCache()
    for call in (model, model.model, make_model(HfTransformerForCausalLM)):
        with pytest.raises(ValueError, match="past_key_values and cache are two names of one argument"):
            call(tokens(), past_key_values=cache, cache=cache)
    with pytest.raises(ValueError, match=r"two names of one argument|Both `past_key_values` and `cache`|both"):
        model.generate(tokens(), past_key_values=cache, cache=cache)


def drop(names):
    """A hook before `forward` that takes these arguments away."""
    return lambda module, args, kwargs: (args, {name: kwargs[name] for name in kwargs if name not in names})


ROBBERIES = {
    "between generate and the model": lambda model, patch: model.register_forward_pre_hook(
        drop(NAMES), with_kwargs=True
    ),
    "between the model and its decoder": lambda model, patch: model.get_decoder().register_forward_pre_hook(
        drop(NAMES), with_kwargs=True
    ),
    "between two steps": lambda model, patch: patch.setattr(
        GenerationMixin, "_update_model_kwargs_for_generation", forget(CACHE_NAME, None)
    ),
    "under a name of the future": lambda model, patch: patch.setattr(
        GenerationMixin, "_update_model_kwargs_for_generation", forget(CACHE_NAME, "kv_states")
    ),
}


def forget(name, new_name):
    """transformers' preparation of the next step, which hands the cache on under another name or not at all."""
    update = GenerationMixin._update_model_kwargs_for_generation

    def updated(self, *args, **kwargs):
        model_kwargs = update(self, *args, **kwargs)
        cache = model_kwargs.pop(name)
        return {**model_kwargs, new_name: cache} if new_name else model_kwargs

    return updated


@every_architecture
@pytest.mark.parametrize("robbery", ROBBERIES.values(), ids=ROBBERIES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_translator_robbed_of_its_cache_raises(monkeypatch, options, robbery, num_beams):
    model = make_model(**options)
    slowly(model, tokens(), num_beams=num_beams)
    robbery(model, monkeypatch)
    with pytest.raises((TypeError, ValueError)) as raised:
        slowly(model, tokens(), num_beams=num_beams)
    assert VERSIONS in str(raised.value), raised.value


@pytest.mark.parametrize("robbery", ROBBERIES.values(), ids=ROBBERIES)
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_a_language_model_robbed_of_its_cache_raises(monkeypatch, robbery, cache):
    model = make_model(HfTransformerForCausalLM)
    robbery(model, monkeypatch)
    with pytest.raises((TypeError, ValueError), match="tested with transformers"):
        slowly(model, tokens(), **cache)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_of_one_token_is_legal(name):
    model, source = make_model(), tokens()
    assert model(source, decoder_input_ids=source[:, :1]).logits.shape[1] == 1
    assert slowly(model, source, max_new_tokens=1, min_new_tokens=1).sequences.shape == (3, 2)
    language_model = make_model(HfTransformerForCausalLM)
    assert slowly(language_model, source[:, :1]).sequences.shape == (3, 7)
    empty = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    assert slowly(model, source, **{name: empty}).sequences.shape == (3, 7)


@every_architecture
def test_masks_and_positions_must_fit_the_past(options):
    model = make_model(**options)
    source, target = tokens(), tokens(seed=2)
    past = model(source, decoder_input_ids=target[:, :4], use_cache=True)[CACHE_NAME]
    step = {"decoder_input_ids": target[:, 4:5], CACHE_NAME: past}
    for length in (1, 4, 6, 9):
        message = rf"decoder_attention_mask must cover 5 tokens.* got shape \(3, {length}\).*{VERSIONS}"
        with pytest.raises(ValueError, match=message):
            model(source, **step, decoder_attention_mask=torch.ones(3, length, dtype=torch.long))
    with pytest.raises(ValueError, match=rf"decoder_position_ids must .* got up to 5 with 4 tokens in.*{VERSIONS}"):
        model(source, **step, decoder_position_ids=torch.tensor([[5]]))
    with pytest.raises(ValueError, match=r"decoder_attention_mask must cover 1 tokens.* got shape \(3, 5\)"):
        model(source, decoder_input_ids=target[:, 4:5], decoder_attention_mask=torch.ones(3, 5, dtype=torch.long))
    expected = model(source, decoder_input_ids=target[:, :5]).logits[:, -1:]
    mask = torch.ones(3, 5, dtype=torch.long)
    got = model(source, **step, decoder_attention_mask=mask, decoder_position_ids=torch.tensor([[4]])).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_masks_of_the_source_must_cover_it():
    model, source = make_model(), tokens()
    with pytest.raises(ValueError, match=r"^attention_mask must cover 9 tokens.* got shape \(3, 8\)"):
        model(source, attention_mask=torch.ones(3, 8), decoder_input_ids=source)
    states = model.get_encoder()(source).last_hidden_state
    with pytest.raises(ValueError, match=r"encoder_attention_mask must cover 9 tokens.* got shape \(3, 10\)"):
        model.get_decoder()(source, encoder_hidden_states=states, encoder_attention_mask=torch.ones(3, 10))


def make_captioner():
    vit = HfViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    text = HfTransformerConfig(**make_model().config.to_diff_dict())
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, text)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    return VisionEncoderDecoderModel(config).eval()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_captions_with_a_cache_equal_those_without(options):
    model, pixel_values = make_captioner(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 1, **options}
    expected = model.generate(pixel_values, **{**options, "cache_implementation": None}, use_cache=False)
    assert len({tuple(text) for text in expected.tolist()}) > 1 or expected.unique().numel() > 5
    assert torch.equal(model.generate(pixel_values, **options), expected)


def test_padding_may_have_any_position():
    """As transformers gives it 1 where padding is on the left, also at index 0."""
    model, ids = make_model(HfTransformerForCausalLM), tokens()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    got = model(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got[0, 3:], model(ids[:1, 3:]).logits[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"position_ids must be at most .* got up to 9 with 0 tokens in the cache"):
        model(ids, attention_mask=mask, position_ids=positions.masked_fill(positions == 5, 9))
