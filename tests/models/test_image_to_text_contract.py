"""What transformers' common tests of models and of generation ask of every model, asked of the Vision Transformer that
writes texts."""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from hf_vit import HfViTForImageToText
from tests.models.test_image_to_text_model import config_of, images, labels, make_model

UNTIED = {"tie_word_embeddings": False, "lm_head_bias": True}


def given(**more):
    return {"pixel_values": images(), "decoder_input_ids": labels(), **more}


# --- models ----------------------------------------------------------------------------------------------------------


def test_images_come_first():
    assert list(inspect.signature(HfViTForImageToText.forward).parameters)[1] == "pixel_values"
    assert HfViTForImageToText.main_input_name == "pixel_values"


@pytest.mark.parametrize("text", [{}, UNTIED, {"init_std": 0.05}], ids=["tied", "untied", "std"])
def test_weights_made_on_the_meta_device_are_drawn_like_others(text):
    """Each has mean and deviation of its like that was made in the usual way, and none is left as memory was."""
    torch.manual_seed(0)
    known = HfViTForImageToText(config_of({"hidden_size": 32}, {"d_model": 64, **text}))
    made = HfViTForImageToText.from_pretrained(None, config=known.config, state_dict={})
    for name, weight in known.named_parameters():
        other = made.get_parameter(name)
        assert weight.ndim and other.shape == weight.shape
        if weight.numel() < 256 or weight.std() == 0:
            assert_close(other.mean(), weight.mean(), atol=0.2, rtol=0)
            continue
        assert other.std().item() == pytest.approx(weight.std().item(), rel=0.15), name
        assert other.mean().abs() < 0.1 * other.std() + 1e-6 or "norm" in name, name
    for name, buffer in known.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer)


@torch.no_grad()
def test_tuples_hold_the_same_as_named_outputs():
    model = make_model()
    told = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    named, plain = model(**given(**told)), model(**given(**told), return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
    for one, other in zip(plain, named.to_tuple()):
        for a, b in zip(one, other) if isinstance(one, tuple) else [(one, other)]:
            assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["argument", "configuration"])
@torch.no_grad()
def test_attentions_and_hidden_states_are_told_either_way(way):
    model, names = make_model(), ("output_attentions", "output_hidden_states")
    told = dict.fromkeys(names, True) if way == "argument" else {}
    if way == "configuration":
        model.set_attn_implementation("eager")
        for name in names:
            for config in (model.config, model.config.vision_config, model.config.text_config):
                setattr(config, name, True)
    outputs = model(**given(**told))
    assert [each.shape for each in outputs.encoder_attentions] == [(3, 2, 12, 12)] * 2
    assert [each.shape for each in outputs.decoder_attentions] == [(3, 4, 5, 5)] * 2
    assert [each.shape for each in outputs.cross_attentions] == [(3, 4, 5, 12)] * 2
    assert [each.shape for each in outputs.encoder_hidden_states] == [(3, 12, 24)] * 3
    assert [each.shape for each in outputs.decoder_hidden_states] == [(3, 5, 32)] * 3
    for each in (*outputs.encoder_attentions, *outputs.cross_attentions):
        assert_close(each.sum(-1), torch.ones_like(each[..., 0]))


def test_gradients_of_layers_outputs_are_kept():
    model = make_model()
    outputs = model(**given(output_attentions=True, output_hidden_states=True))
    kept = [
        outputs.encoder_hidden_states[0],
        outputs.encoder_attentions[0],
        outputs.decoder_hidden_states[0],
        outputs.decoder_attentions[0],
        outputs.cross_attentions[0],
    ]
    for each in kept:
        each.retain_grad()
    outputs.logits.flatten()[0].backward()
    assert all(each.grad is not None for each in kept)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_implementations_of_attention_agree(implementation, tmp_path):
    model = make_model()
    expected = model(**given()).logits
    model.save_pretrained(tmp_path)
    other = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=implementation)
    parts = (other.config, other.config.vision_config, other.config.text_config)
    assert {each._attn_implementation for each in parts} == {implementation}
    assert_close(other(**given()).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embeddings_may_be_given_in_place_of_tokens():
    model, tokens = make_model(), labels()
    embedded = model.get_input_embeddings()(tokens)
    assert model.get_input_embeddings() is model.decoder.embed_tokens
    found = model(images(), decoder_inputs_embeds=embedded).logits
    assert_close(found, model(images(), decoder_input_ids=tokens).logits)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it():
    model, tokens = make_model(), labels()
    mask = torch.ones_like(tokens)
    tokens[0, 3:], mask[0, 3:] = 0, 0
    found = model(images(), decoder_input_ids=tokens, decoder_attention_mask=mask).logits
    assert_close(found[:1, :3], model(images()[:1], decoder_input_ids=tokens[:1, :3]).logits)


@pytest.mark.parametrize("text", [{}, UNTIED], ids=["tied", "untied"])
def test_the_vocabulary_grows_and_shrinks(text, tmp_path):
    model = make_model(text=text)
    before = model(**given()).logits
    for size in (24, 14):
        embeddings = model.resize_token_embeddings(size)
        assert embeddings is model.get_input_embeddings() and embeddings.num_embeddings == size
        assert model.lm_head.out_features == model.config.text_config.vocab_size == size
        assert (model.lm_head.weight is embeddings.weight) is not bool(text)
        assert_close(model(**given()).logits[..., :14], before)
        model.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert torch.equal(again(**given()).logits, model.eval()(**given()).logits)


@torch.no_grad()
def test_tied_weights_are_saved_once_and_loaded_in_place(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) + ("decoder.embed_tokens.weight" in stored) == 1
    loaded, report = HfViTForImageToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert loaded.lm_head.weight is loaded.decoder.embed_tokens.weight
    apart = make_model(text=UNTIED)
    apart.save_pretrained(tmp_path / "apart")
    assert {"lm_head.weight", "decoder.embed_tokens.weight"} <= load_file(tmp_path / "apart/model.safetensors").keys()


def test_it_is_one_graph():
    torch._dynamo.reset()
    model = make_model({"num_hidden_layers": 1}, {"decoder_layers": 1})
    expected = model(images(), labels=labels())
    found = torch.compile(model, backend="eager", fullgraph=True)(images(), labels=labels())
    assert_close(found.loss, expected.loss)
    assert_close(found.logits, expected.logits)


def test_labels_of_parts_of_a_batch_add_up():
    """By the number of labels of the whole, as Trainer accumulates gradients."""
    model, targets = make_model(), labels()
    targets[0, 2:] = -100
    count = (targets != -100).sum()
    whole = model(images(), labels=targets).loss
    parts = [
        model(images()[rows], labels=targets[rows], num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert_close(sum(parts), whole)


# --- generation ------------------------------------------------------------------------------------------------------


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


@pytest.fixture
def endless():
    model = make_model()
    model.generation_config.eos_token_id = None
    return model


def greedy(model, pixels, steps):
    """By the likeliest token, each step anew and without a cache."""
    text = torch.full((len(pixels), 1), model.config.text_config.decoder_start_token_id)
    for _ in range(steps):
        logits = model(pixels, decoder_input_ids=text, use_cache=False).logits[:, -1]
        text = torch.cat((text, logits.argmax(-1, keepdim=True)), 1)
    return text


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}],
    ids=["dynamic", "none", "static"],
)
@torch.no_grad()
def test_greedy_search_takes_the_likeliest_token(endless, options):
    expected = greedy(endless, images(), 6)
    assert torch.equal(endless.generate(images(), max_new_tokens=6, **options), expected)


@torch.no_grad()
def test_generation_goes_on_from_a_beginning_and_from_the_encoders_output(endless):
    expected = greedy(endless, images(), 6)
    again = endless.generate(images(), decoder_input_ids=expected[:, :4], max_new_tokens=3)
    assert torch.equal(again, expected)
    states = endless.get_encoder()(images())
    assert torch.equal(endless.generate(encoder_outputs=states, max_new_tokens=6), expected)


def test_what_generation_returns_beside_texts(endless):
    told = {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True}
    found = endless.generate(images(), max_new_tokens=3, return_dict_in_generate=True, **told)
    assert len(found.scores) == len(found.logits) == len(found.cross_attentions) == 3
    for step, (own, cross) in enumerate(zip(found.decoder_attentions, found.cross_attentions)):
        assert [each.shape for each in own] == [(3, 4, 1, step + 1)] * 2
        assert [each.shape for each in cross] == [(3, 4, 1, 12)] * 2
    assert [each.shape for each in found.encoder_hidden_states] == [(3, 12, 24)] * 3
    logits = endless(images(), decoder_input_ids=found.sequences[:, :-1]).logits
    assert_close(torch.stack(found.logits, 1), logits, atol=1e-5, rtol=1e-5)


def test_samples_follow_the_seed_and_differ(endless):
    settings = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 6}
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(endless.generate(images(), **settings))
    assert found[0].shape == (12, 7)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_beams_find_no_less_likely_texts_than_greedy_search(endless):
    def chance(texts):
        logits = endless(images(), decoder_input_ids=texts[:, :-1]).logits.log_softmax(-1)
        return logits.gather(2, texts[:, 1:, None]).sum((1, 2))

    found = endless.generate(images(), num_beams=14, num_return_sequences=2, max_new_tokens=2)
    best, second = found.view(3, 2, -1).unbind(1)
    assert not torch.equal(best, second)
    assert (chance(best) >= chance(second)).all()
    assert (chance(best) >= chance(greedy(endless, images(), 2)) - 1e-5).all()


def test_forced_tokens_streamers_and_helpers(endless):
    expected = greedy(endless, images()[:1], 6)
    streamer = Collector()
    endless.generate(images()[:1], max_new_tokens=6, streamer=streamer)
    assert streamer.tokens == [*expected[0].tolist(), "end"]
    helped = endless.generate(images()[:1], max_new_tokens=6, assistant_model=make_model())
    assert torch.equal(helped, expected)
    forced = endless.generate(images(), max_new_tokens=3, forced_bos_token_id=5, forced_eos_token_id=9)
    assert forced[:, 1].tolist() == [5] * 3 and forced[:, -1].tolist() == [9] * 3


def test_a_generation_config_travels(tmp_path):
    model = make_model()
    model.generation_config = GenerationConfig(
        max_length=5, num_beams=2, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.generation_config.num_beams == 2 and again.generate(images()).shape[1] <= 5
    assert torch.equal(again.generate(images()), model.generate(images()))
