"""Where detectors and readers of images looked, against the equations of the paper and against generation."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_vit import (
    HfDetrConfig,
    HfDetrForObjectDetection,
    HfDetrImageProcessor,
    HfViTConfig,
    HfViTForImageToText,
    HfViTImageProcessor,
    HfViTImageToTextConfig,
    cli,
)
from hf_vit.explain import explain_objects, query_relevance, read_image
from hf_vit.explain.picture import draw_found, draw_reading
from hf_vit.models.pipeline_image_to_text import ImageToTextPipeline
from hf_vit.predict import predict, told
from hf_vit.read import read

BODY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module", params=["sigmoid", "softmax"])
def detector(request):
    torch.manual_seed(0)
    backbone = HfViTConfig(**BODY, image_size=(32, 48), patch_size=8, use_class_token=False, pooling="mean")
    sizes = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_queries": 3}
    loss = {} if request.param == "sigmoid" else {"class_loss": "softmax"}
    config = HfDetrConfig(backbone_config=backbone, **sizes, **loss, id2label={0: "cat", 1: "dog"})
    model = HfDetrForObjectDetection(config).eval()
    torch.nn.init.normal_(model.class_labels_classifier.weight)
    torch.nn.init.constant_(model.class_labels_classifier.bias, 0.5)
    return model, HfDetrImageProcessor.from_model_config(config)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def relevance_of_the_paper(model, pixel_values, query, index):
    """Equations 5 to 11 of 2103.15679, entry by entry."""
    outputs = model(pixel_values.requires_grad_(), output_attentions=True)
    attentions = [*outputs.decoder_attentions, *outputs.cross_attentions]
    gradients = torch.autograd.grad(outputs.logits[0, query, index], attentions, allow_unused=True)
    cams = []
    for attention, gradient in zip(attentions, gradients):
        gradient = torch.zeros_like(attention) if gradient is None else gradient
        cams.append(np.maximum((attention * gradient).detach()[0].double().numpy(), 0).mean(0))
    queries, tokens = cams[2].shape
    r_qq, r_qi = np.eye(queries), np.zeros((queries, tokens))
    for own, cross in zip(cams[:2], cams[2:]):
        r_qi, r_qq = r_qi + own @ r_qi, r_qq + own @ r_qq
        for q in range(queries):
            for i in range(tokens):
                for s in range(queries):
                    rest = r_qq[s] - np.eye(queries)[s]
                    normed = (rest[q] / rest.sum() if rest.sum() else 0) + (s == q)
                    r_qi[q, i] += normed * cross[s, i]
    return r_qi[query].reshape(tuple(outputs.encoder_last_hidden_state.shape[2:]))


def test_maps_are_those_of_the_paper(detector, image):
    model, processor = detector
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    targets = [(0, 1), (2, 0)]
    for target, found in zip(targets, query_relevance(model, pixel_values, targets)):
        expected = relevance_of_the_paper(model, pixel_values.clone(), *target)
        assert found.shape == (4, 6) and found.max() > 0
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-9)


def test_objects_are_those_that_the_processor_finds(detector, image):
    model, processor = detector
    explanation = explain_objects(model, processor, image, threshold=0.1)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (peer,) = processor.post_process_object_detection(outputs, threshold=0.1)
    best = {
        (model.config.id2label[int(label)], round(float(s), 5)) for label, s in zip(peer["labels"], peer["scores"])
    }
    assert explanation.objects and explanation.image.shape == (32, 48, 3)
    for each in explanation.objects:
        assert (each.label, round(each.score, 5)) in best and 0 <= each.share_inside <= 1
    assert [each.score for each in explanation.objects] == sorted((e.score for e in explanation.objects), reverse=True)
    assert Image.open(io.BytesIO(draw_found(explanation))).format == "PNG"
    assert explain_objects(model, processor, image, threshold=1).objects == []


def test_what_is_no_detector_or_out_of_range_is_refused(detector, image, tiny_model):
    with pytest.raises(ValueError, match="model must be a detector of this package"):
        explain_objects(tiny_model(), detector[1], image)
    with pytest.raises(ValueError, match="threshold must be between 0 and 1, got 2"):
        explain_objects(*detector, image, threshold=2)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        explain_objects(*detector, image, top_k=0)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["hf-vit", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code or 0, capsys.readouterr()


def test_the_command_explains_a_detector(detector, image, tmp_path, monkeypatch, capsys):
    for part in detector:
        part.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "scene.png")
    words = ["explain", tmp_path / "model", tmp_path / "scene.png", "--output", tmp_path / "why.png", "--threshold"]
    status, told = run(monkeypatch, capsys, *words, "0.1")
    assert status == 0 and "of what it looked at lies in its box" in told.out and (tmp_path / "why.png").is_file()
    status, told = run(monkeypatch, capsys, *words, "1", "--overwrite")
    assert status == 2 and "shows no object that scores 1: give a lower --threshold" in told.err
    status, told = run(monkeypatch, capsys, *words, "1.5", "--overwrite")
    assert status == 2 and "threshold must be between 0 and 1, got 1.5" in told.err


# --- readers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    words = ["<pad>", "</s>", *(str(digit) for digit in range(10))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    vision = HfViTConfig(**BODY, image_size=(16, 32), patch_size=8)
    text = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 12}
    ids = {"lm_head_bias": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = HfViTImageToTextConfig(vision_config=vision, text_config={**text, **ids})
    model = HfViTForImageToText(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=2)
    torch.nn.init.constant_(model.lm_head.bias[:2], -30)  # it goes on writing
    model.generation_config.max_length = 8
    processor = HfViTImageProcessor(size={"height": 16, "width": 32})
    return ImageToTextPipeline(model=model, tokenizer=tokenizer, image_processor=processor)


def test_a_reading_is_the_attention_of_generation(reader, image):
    reading = read_image(reader, image)
    pixel_values = reader.image_processor(image, return_tensors="pt")["pixel_values"]
    outputs = reader.model.generate(
        pixel_values=pixel_values, num_beams=1, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    expected = torch.stack([layers[-1][0, :, -1].mean(0) for layers in outputs.cross_attentions])
    assert reading.tokens and reading.text == reader(image)[0]["generated_text"]
    assert reading.weights.shape[1:] == (2, 4)
    expected = expected[: len(reading.tokens), -8:].unflatten(1, (2, 4))
    torch.testing.assert_close(reading.weights, expected, rtol=1e-3, atol=1e-5)
    assert Image.open(io.BytesIO(draw_reading(reading))).format == "PNG"


def test_texts_of_images_are_predicted_with_their_scores(reader, image, tmp_path, monkeypatch, capsys):
    reader.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "strip.png")
    (row,) = predict(str(tmp_path / "model"), [str(tmp_path / "strip.png")], top_k=2)
    first, second = row["predictions"]
    assert first["generated_text"] == reader(image, num_beams=2)[0]["generated_text"]
    assert [each["score"] for each in read(reader, [image], 2)[0]] == pytest.approx([first["score"], second["score"]])
    ids = reader.tokenizer(first["generated_text"])["input_ids"]
    with torch.no_grad():
        source = {"pixel_values": reader.preprocess(image)["pixel_values"]}
        logits = reader.model(**source, decoder_input_ids=torch.tensor([[0, *ids]])).logits[0]
    chances = logits.softmax(-1)[range(len(ids)), ids]  # it was cut, and has no end
    assert first["score"] == pytest.approx(float(chances.prod() ** (1 / len(chances))), rel=1e-3)
    assert told(row).startswith(f"{tmp_path / 'strip.png'}: {first['generated_text']} ({first['score']:.3f}); ")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["HfViTForImageToText"]
    words = ["explain", tmp_path / "model", tmp_path / "strip.png", "--output", tmp_path / "why.png"]
    status, out = run(monkeypatch, capsys, *words)
    assert status == 0 and out.out == f"{read_image(reader, image).text}\n{tmp_path / 'why.png'}\n"
