"""The Transformer computes the same whatever the padding, the cache and the implementation; its loss is a closed form;
its weights survive saving."""

import pytest
import torch
from transformer_tools import ARCHITECTURES, SIZES, VOCAB_SIZE, make_model, pad, tokens
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.utils import find_labels

from hf_vit import (
    HfTransformerConfig,
    HfTransformerForCausalLM,
    HfTransformerForConditionalGeneration,
    HfTransformerModel,
    HfViTConfig,
    HfViTModel,
)
from hf_vit.models.cache_argument import CACHE_NAME

every_architecture = pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)


def assert_close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def new_cache(kind, config):
    if kind == "dynamic":
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return EncoderDecoderCache(
        StaticCache(config=config, max_cache_len=12), StaticCache(config=config, max_cache_len=9)
    )


@every_architecture
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_decoding_in_steps_equals_decoding_at_once(options, kind, implementation):
    model = make_model(**options)
    model.set_attn_implementation(implementation)
    source, source_mask = pad([tokens(1, length)[0] for length in (9, 4, 1)])
    target, target_mask = pad([tokens(1, length, seed=2)[0] for length in (10, 6, 3)], side="left")
    inputs = {"encoder_outputs": model.get_encoder()(source, source_mask), "attention_mask": source_mask}
    expected = model(**inputs, decoder_input_ids=target, decoder_attention_mask=target_mask).logits
    cache, logits = new_cache(kind, model.config), []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 10)):
        outputs = model(
            **inputs,
            decoder_input_ids=target[:, start:stop],
            decoder_attention_mask=target_mask[:, :stop],
            **{CACHE_NAME: cache},
            use_cache=True,
        )
        cache = outputs[CACHE_NAME]
        logits.append(outputs.logits)
    kept = target_mask.bool()
    assert expected[kept].std() > 0.1
    assert_close(torch.cat(logits, 1)[kept], expected[kept])


@torch.no_grad()
def test_the_encoder_is_projected_once_per_sentence():
    model = make_model()
    calls = []
    for layer in model.model.decoder.layers:
        layer.cross_attention.kv_proj.register_forward_hook(lambda *args: calls.append(args))
    model.generate(tokens(), max_new_tokens=6, min_new_tokens=6)
    assert len(calls) == SIZES["decoder_layers"]


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(options, side):
    model = make_model(**options)
    sources, targets = [tokens(1, n)[0] for n in (9, 5, 1)], [tokens(1, n, seed=2)[0] for n in (7, 2, 4)]
    alone = [model(source[None], decoder_input_ids=target[None]) for source, target in zip(sources, targets)]
    source, source_mask = pad(sources, side, length=14)
    target, target_mask = pad(targets, side, length=11)
    together = model(source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask)
    for i, expected in enumerate(alone):
        assert_close(together.logits[i][target_mask[i].bool()], expected.logits[0])
        assert_close(
            together.encoder_last_hidden_state[i][source_mask[i].bool()], expected.encoder_last_hidden_state[0]
        )


@every_architecture
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fully_padded_row_is_finite_and_changes_no_other(options, implementation, dtype):
    model = make_model(**options).to(dtype)
    model.set_attn_implementation(implementation)
    source, mask = pad([tokens(1, 6)[0], tokens(1, 0)[0]])
    labels, target_mask = pad([tokens(1, 5, seed=2)[0], tokens(1, 0)[0]])
    outputs = model(source, attention_mask=mask, labels=labels, decoder_attention_mask=target_mask)
    alone = model(source[:1], labels=labels[:1])
    assert outputs.logits.isfinite().all()
    assert_close(outputs.loss, alone.loss, tolerance=1e-5 if dtype == torch.float32 else 2e-2)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@every_architecture
@torch.no_grad()
def test_attentions_are_returned_whatever_the_implementation(options):
    model = make_model(**options)
    source, mask = pad([tokens(1, 9)[0], tokens(1, 4)[0]])
    inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": tokens(2, 5, seed=2)}
    outputs = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        outputs[implementation] = model(**inputs, output_attentions=True, output_hidden_states=True)
    shapes = {"encoder_attentions": (2, 4, 9, 9), "decoder_attentions": (2, 2, 5, 5), "cross_attentions": (2, 2, 5, 9)}
    for name, shape in shapes.items():
        got, expected = outputs["sdpa"][name], outputs["eager"][name]
        assert len(got) == len(expected) == (2 if name == "encoder_attentions" else 3)
        for weights, expected_weights in zip(got, expected):
            assert weights.shape == shape
            assert_close(weights, expected_weights)
            assert_close(weights.sum(-1), torch.ones(shape[:-1]))
            if name == "decoder_attentions":
                assert not weights.triu(1).any()
            else:
                assert not weights[1, ..., 4:].any()
    assert_close(outputs["sdpa"].logits, model(**inputs).logits)
    assert len(outputs["sdpa"].encoder_hidden_states) == 3
    assert_close(outputs["sdpa"].encoder_hidden_states[-1], outputs["sdpa"].encoder_last_hidden_state)
    assert len(outputs["sdpa"].decoder_hidden_states) == 4


@torch.no_grad()
def test_embeddings_may_be_given_in_place_of_tokens():
    model, source, target = make_model(), tokens(), tokens(seed=2)
    embed = model.get_input_embeddings()
    expected = model(source, decoder_input_ids=target).logits
    assert_close(model(inputs_embeds=embed(source), decoder_inputs_embeds=embed(target)).logits, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_cross_entropy_of_the_labels_that_count(label_smoothing):
    model = make_model(label_smoothing=label_smoothing)
    labels, mask = pad([tokens(1, length, seed=2)[0] for length in (5, 3, 1)])
    start = torch.full((3, 1), model.config.decoder_start_token_id)
    outputs = model(tokens(), labels=labels)
    decoded = model(tokens(), decoder_input_ids=torch.cat((start, labels[:, :-1]), 1))
    assert_close(outputs.logits, decoded.logits)  # the labels themselves are not moved
    log_probabilities = decoded.logits.log_softmax(-1)
    losses = []
    for i, j in mask.nonzero().tolist():
        true, spread = log_probabilities[i, j, labels[i, j]], log_probabilities[i, j].mean()
        losses.append(-(1 - label_smoothing) * true - label_smoothing * spread)
    assert_close(outputs.loss, torch.stack(losses).mean())
    assert_close(model(tokens(), labels=labels.masked_fill(mask == 0, -100)).loss, outputs.loss)
    assert_close(model(tokens(), labels=labels, num_items_in_batch=4).loss, torch.stack(losses).sum() / 4)


def test_padding_that_ends_texts_counts_as_a_label():
    model = make_model(pad_token_id=2)
    labels = torch.tensor([[5, 2, 2]])
    logits = model(tokens(1), labels=labels).logits
    assert_close(model(tokens(1), labels=labels).loss, torch.nn.functional.cross_entropy(logits[0], labels[0]))


def test_labels_that_are_all_padding_give_no_loss_and_no_gradient():
    model = make_model(label_smoothing=0.1)
    loss = model(tokens(), labels=torch.full((3, 4), -100)).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_a_language_model_predicts_the_next_of_its_own_tokens():
    model = make_model(HfTransformerForCausalLM)
    ids, _ = pad([tokens(1, length)[0] for length in (6, 4)])
    outputs = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0
    )
    assert_close(outputs.loss, expected)
    assert_close(model(ids, logits_to_keep=2).logits, outputs.logits[:, -2:])
    moved = torch.cat((ids[:, 1:], torch.full((2, 1), -100)), dim=1)  # as the Trainer gives them to parallel processes
    for labels in (None, ids):
        assert_close(model(ids, labels=labels, shift_labels=moved).loss, expected)
    assert find_labels(HfTransformerForCausalLM) == ["labels"]


@every_architecture
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(options, use_reentrant):
    model = make_model(**options, dropout=0.0).train()

    def gradients():
        model.zero_grad()
        model(tokens(), labels=tokens(seed=2)).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients()
    # The older of the two names is deprecated where there is the newer.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    got = gradients()
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert gradient is not None, name
        assert_close(got[name], gradient)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout", "drop_path_rate"])
def test_each_dropout_acts_in_training_alone(name):
    model = make_model(**{"dropout": 0.0, name: 0.5})
    expected = make_model(dropout=0.0)(tokens(), labels=tokens(seed=2)).loss
    assert model(tokens(), labels=tokens(seed=2)).loss == expected
    torch.manual_seed(0)
    assert model.train()(tokens(), labels=tokens(seed=2)).loss != expected


@torch.no_grad()
def test_half_precision_stays_close():
    model = make_model()
    expected = model(tokens(), labels=tokens(seed=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(tokens(), labels=tokens(seed=2))
    half = model.to(torch.bfloat16)(tokens(), labels=tokens(seed=2))
    assert half.logits.dtype == torch.bfloat16
    for outputs in (mixed, half):
        assert (outputs.logits.float() - expected.logits).abs().max() < 0.3 * expected.logits.std()
        assert outputs.loss.dtype == torch.float32
        assert_close(outputs.loss, expected.loss, tolerance=2e-2)


@every_architecture
@torch.no_grad()
def test_the_model_is_one_graph(options):
    torch._dynamo.reset()
    model, source, target = make_model(**options), tokens(), tokens(seed=2)
    expected = model(source, labels=target)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(source, labels=target)
    assert_close(compiled.loss, expected.loss)
    assert_close(compiled.logits, expected.logits)


def tied_groups(model):
    groups = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return sorted(sorted(names) for names in groups.values() if len(names) > 1)


HEAD, DECODER, ENCODER = "lm_head.weight", "model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"


@pytest.mark.parametrize(
    ("share", "tie", "expected"),
    [
        (True, True, [[HEAD, DECODER, ENCODER]]),
        (True, False, [[DECODER, ENCODER]]),
        (False, True, [[HEAD, DECODER]]),
        (False, False, []),
    ],
)
@torch.no_grad()
def test_tied_weights_are_one_before_and_after_saving(tmp_path, share, tie, expected):
    model = make_model(share_encoder_decoder_embeddings=share, tie_word_embeddings=tie)
    assert tied_groups(model) == expected
    model.save_pretrained(tmp_path)
    loaded, report = HfTransformerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert tied_groups(loaded) == expected
    inputs = {"input_ids": tokens(), "labels": tokens(seed=2)}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@every_architecture
@torch.no_grad()
def test_the_auto_classes_load_body_translator_and_decoder_from_one_folder(tmp_path, options):
    model = make_model(**options)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is HfTransformerConfig
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)}
    expected = model(**inputs, output_hidden_states=True)
    translator, body = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(translator) is HfTransformerForConditionalGeneration and type(body) is HfTransformerModel
    assert torch.equal(translator(**inputs).logits, expected.logits)
    assert torch.equal(body(**inputs).last_hidden_state, expected.decoder_hidden_states[-1])
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path, add_cross_attention=True)
    logits = decoder(tokens(seed=2), encoder_hidden_states=expected.encoder_last_hidden_state).logits
    assert torch.equal(logits, expected.logits)


@torch.no_grad()
@pytest.mark.parametrize("encoder_vocab_size", [None, VOCAB_SIZE])
def test_resizing_keeps_the_old_tokens(tmp_path, encoder_vocab_size):
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)}
    model = make_model(encoder_vocab_size=encoder_vocab_size)
    expected = model(**inputs).logits
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    assert model.config.vocab_size == VOCAB_SIZE + 5
    assert model.config.encoder_vocab_size == (encoder_vocab_size and VOCAB_SIZE + 5)
    assert tied_groups(model) == [[HEAD, DECODER, ENCODER]]
    assert_close(model(**inputs).logits[..., :VOCAB_SIZE], expected)
    model.save_pretrained(tmp_path)
    assert HfTransformerForConditionalGeneration.from_pretrained(tmp_path)(**inputs).logits.shape[-1] == VOCAB_SIZE + 5


@pytest.mark.parametrize("model_class", [HfTransformerModel, HfTransformerForCausalLM])
def test_body_and_decoder_are_resized_and_load_again(tmp_path, model_class):
    model = make_model(model_class)
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == again.config.vocab_size == VOCAB_SIZE + 5


def test_the_encoders_vocabulary_follows_the_decoders():
    config = HfTransformerConfig(**SIZES)
    config.vocab_size = 7
    model = HfTransformerForConditionalGeneration(config)
    assert model.get_encoder().embed_tokens.weight.shape[0] == model.lm_head.weight.shape[0] == 7


def test_the_sizes_that_transformers_asks_for_are_those_it_sets():
    config = HfTransformerConfig(**SIZES)
    config.num_hidden_layers, config.num_attention_heads = 7, 1
    assert (config.encoder_layers, config.encoder_attention_heads, config.decoder_layers) == (7, 1, 3)
    config.is_encoder_decoder = False
    config.num_hidden_layers, config.num_attention_heads = 5, 4
    assert (config.decoder_layers, config.decoder_attention_heads, config.encoder_layers) == (5, 4, 7)


@pytest.mark.parametrize(("part", "sizes"), [("encoder", (50, VOCAB_SIZE)), ("decoder", (VOCAB_SIZE, 50))])
def test_a_model_with_one_vocabulary_resized_loads_again(tmp_path, part, sizes):
    model = make_model(share_encoder_decoder_embeddings=False)
    getattr(model, f"resize_{part}_token_embeddings")(50)
    model.save_pretrained(tmp_path)
    again = HfTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert tuple(len(stack.embed_tokens.weight) for stack in (again.model.encoder, again.model.decoder)) == sizes


@torch.no_grad()
def test_vocabularies_that_are_not_shared_are_resized_one_by_one():
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)}
    model = make_model(share_encoder_decoder_embeddings=False)
    expected = model(**inputs).logits
    with pytest.raises(ValueError, match="share_encoder_decoder_embeddings must be True for resize_token_embeddings"):
        model.resize_token_embeddings(50)
    model.resize_encoder_token_embeddings(50)
    model.resize_decoder_token_embeddings(60)
    assert (model.config.encoder_vocab_size, model.config.vocab_size) == (50, 60)
    assert tied_groups(model) == [[HEAD, DECODER]]
    logits = model(**inputs).logits
    assert logits.shape[-1] == 60
    assert_close(logits[..., :VOCAB_SIZE], expected)
    with pytest.raises(ValueError, match="share_encoder_decoder_embeddings must be False to resize one of them"):
        make_model().resize_encoder_token_embeddings(50)


@pytest.mark.parametrize("d_model", [32, 48])
def test_a_vision_encoder_decoder_learns_to_caption(tmp_path, d_model):
    torch.manual_seed(0)
    vit = HfViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    text = HfTransformerConfig(**{**SIZES, "d_model": d_model, "encoder_layers": 1, "dropout": 0.0})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, text)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = VisionEncoderDecoderModel(config)
    assert type(model.encoder) is HfViTModel and type(model.decoder) is HfTransformerForCausalLM
    pixel_values = torch.randn(2, 3, 16, 16)
    labels = torch.tensor([[5, 6, 7, 2], [9, 8, 5, 2]])
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(pixel_values=pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    model.eval().save_pretrained(tmp_path)
    for captioner in (model, VisionEncoderDecoderModel.from_pretrained(tmp_path)):
        for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
            captions = captioner.generate(pixel_values, max_new_tokens=6, eos_token_id=2, pad_token_id=0, **options)
            assert captions[:, 1:].tolist() == labels.tolist()
