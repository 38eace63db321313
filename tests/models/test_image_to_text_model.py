"""The Vision Transformer that writes texts: it computes what its parts compute, generates the same by the fast path
and the plain one, learns, and travels."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.models.vision_encoder_decoder import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from hf_vit import (
    HfTransformerForCausalLM,
    HfViTForImageToText,
    HfViTImageProcessor,
    HfViTImageToTextConfig,
    HfViTModel,
)
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.models import fast_generation
from hf_vit.models.cache_argument import CACHE_NAME
from hf_vit.models.pipeline_image_to_text import ImageToTextPipeline
from tests.random_weights import randomise
from tests.translators import make_tokenizer

VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": [8, 24],
    "patch_size": 4,
    "num_channels": 1,
    "use_class_token": False,
    "pooling": "none",
}
TEXT = {
    "vocab_size": 14,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "norm_position": "pre",
    "dropout": 0.0,
}
ARCHITECTURES = {
    "plain": ({}, {}),
    "prefix tokens, rotary": (
        {"use_class_token": True, "num_register_tokens": 2, "position_embedding": "rope_2d"},
        {"position_embedding": "rope"},
    ),
    "class layers, own output": (
        {"use_class_token": True, "pooling": "cls", "num_class_layers": 1},
        {"tie_word_embeddings": False, "lm_head_bias": True, "norm_position": "post", "position_embedding": "learned"},
    ),
    "same width": ({"hidden_size": 32}, {"qk_norm": True, "position_embedding": "relative"}),
}
every_architecture = pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
HIDDEN = ["torchvision", "timm", "peft", "accelerate", "datasets"]


def config_of(vision=(), text=()):
    return HfViTImageToTextConfig(vision_config={**VISION, **dict(vision)}, text_config={**TEXT, **dict(text)})


def make_model(vision=(), text=()):
    torch.manual_seed(0)
    return randomise(HfViTForImageToText(config_of(vision, text)))


def images(count=3):
    return torch.randn(count, 1, 8, 24, generator=torch.Generator().manual_seed(1))


def labels(count=3, length=5):
    return torch.randint(3, 14, (count, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_it_computes_what_vision_encoder_decoder_computes_of_the_same_parts():
    """Which projects the encoder's output where the widths differ: a projection that our decoder has in its keys and
    values."""
    for width in (24, 32):
        model = make_model({"hidden_size": width})
        config = copy.deepcopy(model.config)
        parts = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config.vision_config, config.text_config)
        peer = VisionEncoderDecoderModel(
            config=parts,
            encoder=HfViTModel(config.vision_config, add_pooling_layer=False),
            decoder=HfTransformerForCausalLM(config.text_config),
        ).eval()
        peer.encoder.load_state_dict(model.encoder.state_dict())
        peer.decoder.model.decoder.load_state_dict(model.decoder.state_dict())
        peer.decoder.lm_head.load_state_dict(model.lm_head.state_dict())
        expected = peer(pixel_values=images(), decoder_input_ids=labels())
        got = model(images(), decoder_input_ids=labels())
        assert got.logits.std() > 0.1
        torch.testing.assert_close(got.logits, expected.logits)


@every_architecture
def test_the_loss_is_that_of_shifted_labels_and_reaches_every_weight(options):
    model = make_model(*options)
    targets = labels()
    targets[0, 3:] = -100
    outputs = model(images(), labels=targets)
    start = torch.cat((torch.ones(3, 1, dtype=torch.long), targets[:, :-1]), 1)
    start[0, 4] = 0  # behind a label that does not count
    logits = model(images(), decoder_input_ids=start).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
        if "k_norm.bias" not in name  # shifts all scores of a query alike
    ]
    assert not without


@every_architecture
@torch.no_grad()
def test_steps_with_a_cache_and_layers_outputs(options):
    model = make_model(*options)
    expected = model(images(), decoder_input_ids=labels())
    first = model(images(), decoder_input_ids=labels()[:, :2], use_cache=True)
    states = {"encoder_outputs": (first.encoder_last_hidden_state,), CACHE_NAME: first[CACHE_NAME]}
    rest = model(decoder_input_ids=labels()[:, 2:], **states)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), expected.logits, atol=1e-5, rtol=1e-5)
    told = model(images(), decoder_input_ids=labels(), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(told.logits, expected.logits, atol=1e-5, rtol=1e-5)
    num_tokens = expected.encoder_last_hidden_state.shape[1]
    assert [each.shape for each in told.cross_attentions] == [(3, 4, 5, num_tokens)] * 2
    assert len(told.encoder_hidden_states) == len(told.decoder_hidden_states) == 3


@every_architecture
@pytest.mark.parametrize("num_beams", [1, 4])
@torch.no_grad()
def test_the_fast_path_gives_the_texts_of_the_plain_one(options, num_beams, monkeypatch):
    model = make_model(*options)
    model.encoder.norm.weight.data *= 50  # or all images would be much alike to random weights
    calls, make = [], fast_generation.CachedDecoder
    monkeypatch.setattr(fast_generation, "CachedDecoder", lambda *args: calls.append(1) or make(*args))
    settings = {"max_new_tokens": 8, "num_beams": num_beams}
    got = model.generate(images(), **settings)
    assert calls
    again = model.generate(pixel_values=images(), **settings)
    plain = model.generate(images(), **settings, return_dict_in_generate=True, output_scores=True).sequences
    assert len(calls) == 2
    assert torch.equal(got, plain) and torch.equal(again, plain)
    first = model(images(), decoder_input_ids=got[:, :1]).logits[:, 0]  # (images, vocabulary)
    assert (first[0] - first[1]).abs().max() > 0.1


def test_bf16_and_gradient_checkpointing():
    model = make_model()
    model(images(), labels=labels()).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()(images(), labels=labels()).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    with torch.autocast("cpu", torch.bfloat16):  # as the loop and Trainer do
        mixed = make_model()
        loss = mixed(images(), labels=labels()).loss
    torch.testing.assert_close(loss, make_model()(images(), labels=labels()).loss, atol=0.05, rtol=0.02)
    loss.backward()
    for name, parameter in mixed.named_parameters():
        assert parameter.grad.dtype == torch.float32
        difference = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert difference < 0.1 or "k_proj.bias" in name, name  # shifts all scores of a query alike
    half = make_model().bfloat16()
    outputs = half(images(), labels=labels())
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(
        outputs.logits.float(), make_model()(images(), labels=labels()).logits, atol=0.3, rtol=0.1
    )
    assert half.generate(images().bfloat16(), max_new_tokens=4).shape[0] == 3


@pytest.mark.parametrize("tie", [False, True])
def test_saving_keeps_everything(tie, tmp_path):
    model = make_model(text={"tie_word_embeddings": tie})
    assert (model.lm_head.weight is model.decoder.embed_tokens.weight) is tie
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is HfViTForImageToText
    for name in ("text_config", "vision_config"):
        told, known = (getattr(each.config, name).to_dict() for each in (again, model))
        assert {**told, "dtype": None} == {**known, "dtype": None}
    assert (again.lm_head.weight is again.decoder.embed_tokens.weight) is tie
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    resized = again.resize_token_embeddings(20)
    assert resized.weight.shape[0] == again.config.text_config.vocab_size == again.lm_head.out_features == 20


PROGRAM = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline
torch.set_num_threads(1)
read = pipeline("image-to-text", model=folder, trust_remote_code=True)
strips = [Image.open(path) for path in paths]
texts = [read(strips, batch_size=3, max_new_tokens=6), read(paths[0], num_beams=3, num_return_sequences=2)]
read.save_pretrained(again)
texts += [pipeline("image-to-text", model=again, trust_remote_code=True)(strips, max_new_tokens=6)]
model = AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True)
result = {"texts": texts, "name": type(model).__module__.partition(".")[0]}
"""


def test_the_pipeline_serves_a_folder_without_the_package(tmp_path):
    model, tokenizer = make_model(), make_tokenizer()
    model.generation_config.max_length = 9
    form = {"image_mean": [0.5], "image_std": [0.5], "do_convert_rgb": False, "do_convert_grey": True}
    processor = HfViTImageProcessor(size={"height": 8, "width": 24}, crop_pct=1.0, crop_mode="border", **form)
    for part in (model, tokenizer, processor):
        part.save_pretrained(tmp_path / "saved")
    generator, paths = np.random.default_rng(0), []
    for number, size in enumerate(((8, 24), (8, 50), (30, 20))):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(paths[-1])
    variables = {"paths": paths, "again": str(tmp_path / "again"), "folder": str(tmp_path / "saved")}
    with fresh_process(hidden=HIDDEN, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as stranger:
        found = stranger.run(PROGRAM, **variables)
    assert found["name"] == "transformers_modules"
    pixels = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    texts = tokenizer.batch_decode(model.generate(pixels, max_new_tokens=6), skip_special_tokens=True)
    assert found["texts"][0] == found["texts"][2] == [[{"generated_text": text.strip()}] for text in texts]
    assert len(found["texts"][1]) == 2
    here = pipeline("image-to-text", model=str(tmp_path / "saved"), trust_remote_code=True)
    assert here(paths, max_new_tokens=6) == found["texts"][0]
    assert here([]) == []
    with pytest.raises(ValueError, match="tokenizer must have at most the model's 14 tokens, got 15"):
        tokenizer.add_tokens("six")
        ImageToTextPipeline(model=model, tokenizer=tokenizer, image_processor=processor)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "again")) == 14


def test_the_trainer_teaches_it_to_read(tmp_path):
    """Which of three patterns is in an image, in a word of three tokens each."""
    patterns, words = images(3), torch.tensor([[3, 4, 5, 2], [6, 4, 7, 2], [8, 9, 3, 2]])
    rows = [{"pixel_values": patterns[i % 3], "labels": words[i % 3]} for i in range(48)]
    torch.manual_seed(0)
    model = HfViTForImageToText(config_of())
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=12,
        num_train_epochs=12,
        learning_rate=3e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:3])
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.3
    assert torch.equal(model.generate(patterns)[:, 1:], words)


def test_layer_groups_cover_all_but_the_head():
    model = make_model(text={"tie_word_embeddings": False})
    found = [id(p) for group in model.layer_groups() for module in group for p in module.parameters()]
    assert len(found) == len(set(found))
    rest = {name for name, parameter in model.named_parameters() if id(parameter) not in set(found)}
    assert rest == {"lm_head.weight", "decoder.norm.weight", "decoder.norm.bias"}
    assert len(model.layer_groups()) == 5


def test_bad_input_is_named():
    model = make_model()
    with pytest.raises(ValueError, match=r"pixel_values must be at most 8 x 24 pixels \(image_size\).*got 8 x 28"):
        model(torch.zeros(1, 1, 8, 28), labels=labels(1))
    with pytest.raises(ValueError, match="pixel_values must be at most 8 x 24 pixels"):
        model.generate(torch.zeros(1, 1, 8, 28))
    with pytest.raises(ValueError, match="pixel_values must be given unless encoder_outputs are, got None"):
        model(labels=labels())
    with pytest.raises(ValueError, match=r"vision_config must norm the tokens .* got pooling 'mean'"):
        config_of({"pooling": "mean"})
    with pytest.raises(ValueError, match="vision_config must be of model_type 'hf_vit', got 'vit'"):
        config_of({"model_type": "vit"})
    with pytest.raises(ValueError, match="cross_attention_hidden_size needs add_cross_attention=True, got 8"):
        type(model.config.text_config)(cross_attention_hidden_size=8)
    with pytest.raises(TypeError, match="knows no argument 'pixel_value'"):
        model(images(), labels=labels(), pixel_value=images())
