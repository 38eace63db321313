"""The verb `explain` and what stands behind it, on the models that come with the package."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BartConfig,
    BartForConditionalGeneration,
)
from translators import BART, make_tokenizer

from hf_vit import HfDetrConfig, HfViTConfig, cli
from hf_vit.explain import alignment, class_index, explain_image
from hf_vit.explain.picture import draw_alignment
from hf_vit.translate import load_translator

CARDS = Path(__file__).parents[2] / "model_cards"
DIGITS = str(CARDS / "digits")
SAMPLE = f"{DIGITS}/sample_2.png"


@pytest.fixture(scope="module")
def classifier():
    options = {"trust_remote_code": False}
    model = AutoModelForImageClassification.from_pretrained(DIGITS, **options)
    return model, AutoImageProcessor.from_pretrained(DIGITS, **options)


@pytest.fixture(scope="module")
def explanation(classifier):
    return explain_image(*classifier, Image.open(SAMPLE), ["3"])


def test_an_explanation_adds_up(classifier, explanation):
    model, processor = classifier
    with torch.no_grad():
        logits = model(**processor(Image.open(SAMPLE).convert("RGB"), return_tensors="pt")).logits[0]
    assert [each.label for each in explanation.classes] == ["2", "3"]
    for each in explanation.classes:
        assert each.is_exact and each.logit == pytest.approx(float(logits[int(each.label)]), abs=1e-5)
        assert float(each.heat_map.sum()) + each.tokens + each.bias == pytest.approx(each.logit, abs=1e-5)
        assert each.score == pytest.approx(float(logits.softmax(-1)[int(each.label)]), abs=1e-5)
        for curves in (each.curves, each.chance):
            assert float(curves.deletion[0, 0]) == pytest.approx(each.score, abs=1e-5)
            assert float(curves.insertion[0, -1]) == pytest.approx(each.score, abs=1e-5)


def test_the_map_of_the_prediction_beats_chance(explanation):
    best = explanation.classes[0]
    assert best.curves.deletion_area < best.chance.deletion_area
    assert best.curves.insertion_area > best.chance.insertion_area


def test_the_image_is_what_the_model_sees(classifier, explanation):
    _, processor = classifier
    size = (processor.size["width"], processor.size["height"])
    expected = np.asarray(Image.open(SAMPLE).convert("L").resize(size, Image.Resampling(processor.resample))) / 255
    assert explanation.image.shape == (*size[::-1], 3)
    np.testing.assert_allclose(explanation.image[..., 0], expected, atol=0.02)


def test_other_poolings_are_explained_by_relevance(tiny_model, classifier):
    model = tiny_model(image_size=classifier[0].config.image_size, num_channels=classifier[0].config.num_channels)
    (each,) = explain_image(model, classifier[1], Image.open(SAMPLE)).classes
    assert not each.is_exact and each.tokens is None and (each.heat_map >= 0).all()


@pytest.mark.parametrize("name", ["cat", "tabby", "1"])
def test_classes_have_names_and_indices(tiny_model, name):
    model = tiny_model(num_labels=2)
    model.config.id2label, model.config.label2id = {0: "cat", 1: "tabby"}, {"cat": 0, "tabby": 1}
    assert class_index(model, name) == (0 if name == "cat" else 1)
    with pytest.raises(ValueError, match="class 'taby' does not exist, nearest: tabby"):
        class_index(model, "taby")
    with pytest.raises(ValueError, match="class '2' does not exist, there are 2, cat, tabby"):
        class_index(model, "2")


def test_alignment_is_the_attention_of_generation():
    """Row by row what `generate` attends to while it writes the translation."""
    translator = load_translator(str(CARDS / "dates"))
    text = "piatok 31. marca 2084"
    source = translator.tokenizer(text, return_tensors="pt")
    outputs = translator.model.generate(
        **source, num_beams=1, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    expected = torch.stack([layers[-1][0, :, -1].mean(0) for layers in outputs.cross_attentions])
    found = alignment(translator.model, translator.tokenizer, text, "2084-03-31", translator.target_tokenizer)
    torch.testing.assert_close(found.weights, expected, rtol=1e-3, atol=1e-5)
    assert "".join(found.target[:-1]) == "2084-03-31" and len(found.source) == found.weights.shape[1]
    assert Image.open(io.BytesIO(draw_alignment(found))).format == "PNG"
    with pytest.raises(ValueError, match="text must not be empty"):
        alignment(translator.model, translator.tokenizer, " ", "")
    with pytest.raises(ValueError, match="layer must be the index of one of"):
        alignment(translator.model, translator.tokenizer, text, "2084", layer=9)


def test_translators_of_transformers_have_an_alignment_too():
    """That of the eager implementation, whichever the model was loaded with."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**BART, attn_implementation="sdpa")).eval()
    tokenizer = make_tokenizer()
    found = alignment(model, tokenizer, "ein zwei", "one two three")
    source, labels = (
        tokenizer("ein zwei", return_tensors="pt"),
        torch.tensor([tokenizer("one two three")["input_ids"]]),
    )
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    expected = model(**source, labels=labels, output_attentions=True).cross_attentions[-1][0].mean(0)
    torch.testing.assert_close(found.weights, expected)
    assert found.source == ["ein", "zwei", "</s>"] and found.target == ["one", "two", "three", "</s>"]


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["hf-vit", "explain", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code or 0, capsys.readouterr()


def test_the_command_writes_a_picture(monkeypatch, capsys, tmp_path):
    output = tmp_path / "why.png"
    status, told = run(monkeypatch, capsys, DIGITS, SAMPLE, "--class", "3", "--output", output)
    assert status == 0
    picture = Image.open(output)
    assert picture.format == "PNG" and min(picture.size) > 500
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 200
    assert told.out.startswith("2 0.9") and "3 0.0" in told.out and told.out.endswith(f"{output}\n")
    status, told = run(monkeypatch, capsys, DIGITS, SAMPLE, "--output", output)
    assert status == 2 and "exists: name another, or give --overwrite" in told.err


def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path):
    broken, output = tmp_path / "broken.png", tmp_path / "why.png"
    broken.write_bytes(b"no image")
    body, detector = tmp_path / "body", tmp_path / "detector"
    HfViTConfig(architectures=["HfViTModel"]).save_pretrained(body)
    HfDetrConfig(architectures=["HfDetrForObjectDetection"]).save_pretrained(detector)
    cases = {
        "class '12' does not exist, nearest: ": (DIGITS, SAMPLE, "--class", "12"),
        "cannot be read": (DIGITS, broken),
        "no file, folder or pattern": (DIGITS, tmp_path / "none.png"),
        "image must be one file or address": (DIGITS, DIGITS),
        "model must classify images, detect": (body, SAMPLE),
        "is for object-detection": (detector, SAMPLE, "--class", "3"),
        "--class is for models that classify images": (CARDS / "dates", "piatok", "--class", "3"),
        "--threshold is for models that find objects": (DIGITS, SAMPLE, "--threshold", "0.3"),
        "there is no folder": (tmp_path / "none", SAMPLE),
    }
    for message, words in cases.items():
        status, told = run(monkeypatch, capsys, *words, "--output", output)
        assert status == 2 and message in told.err and told.err.count("\n") == 1, told.err
        assert not output.exists()
