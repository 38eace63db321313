"""Predictions, vectors and neighbours of images, against transformers' pipeline and plain numpy."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_vit import cli
from hf_vit.embed import embed, read_embeddings, search, write_embeddings
from hf_vit.inputs import find_images
from hf_vit.predict import predict, write_predictions

CARDS = Path(__file__).parents[1] / "model_cards"
DIGITS = str(CARDS / "digits")
SAMPLES = [f"{DIGITS}/sample_{index}.png" for index in range(4)]


@pytest.fixture(scope="module")
def rows():
    return list(predict(DIGITS, SAMPLES, top_k=3, batch_size=3))


@pytest.fixture(scope="module")
def embeddings():
    return embed(DIGITS, [f"{DIGITS}/sample_*.png"], batch_size=3)


def test_predictions_are_those_of_the_pipeline(rows):
    expected = pipeline("image-classification", model=DIGITS, trust_remote_code=False)(SAMPLES, top_k=3)
    assert [row["file"] for row in rows] == SAMPLES
    for row, peer in zip(rows, expected):
        assert [each["label"] for each in row["predictions"]] == [each["label"] for each in peer]
        scores = [[each["score"] for each in side] for side in (row["predictions"], peer)]
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6)


def test_files_hold_the_predictions(rows, tmp_path):
    lines = write_predictions(rows, tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    with write_predictions(rows, tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    flat = [(row["file"], each["label"], each["score"]) for row in rows for each in row["predictions"]]
    assert [(each["file"], each["label"], float(each["score"])) for each in table] == flat
    assert [each["rank"] for each in table[:4]] == ["1", "2", "3", "1"]


def test_vectors_are_what_the_head_is_given(embeddings):
    model = AutoModelForImageClassification.from_pretrained(DIGITS, trust_remote_code=False).eval()
    given = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach().numpy()))
    processor = AutoImageProcessor.from_pretrained(DIGITS, trust_remote_code=False)
    model(**processor([Image.open(name).convert("RGB") for name in SAMPLES], return_tensors="pt"))
    np.testing.assert_allclose(embeddings.vectors, given[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vectors.parquet", "vectors.npy"])
def test_vectors_are_read_back(embeddings, tmp_path, name):
    again = read_embeddings(write_embeddings(embeddings, tmp_path / name))
    assert (again.files, again.model, again.revision) == (SAMPLES, DIGITS, None)
    np.testing.assert_array_equal(again.vectors, embeddings.vectors)


def test_neighbours_are_those_of_numpy(embeddings):
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)
    cosines = unit @ unit[2]
    order = np.argsort(-cosines)[:3]
    found = search(embeddings, SAMPLES[2], top_k=3)
    assert [name for name, _ in found] == [SAMPLES[index] for index in order]
    np.testing.assert_allclose([cosine for _, cosine in found], cosines[order], atol=1e-5)


def test_unreadable_images_are_named_and_skipped(tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    Image.new("L", (16, 16)).save(tmp_path / "good.PNG")
    (row,) = predict(DIGITS, [str(tmp_path)])
    assert row["file"].endswith("good.PNG")
    assert "broken.png" in caplog.text and "deep.png" in caplog.text and "2 of 3 images" in caplog.text
    (tmp_path / "good.PNG").unlink()
    with pytest.raises(ValueError, match="none of 2 can be read"):
        list(predict(DIGITS, [str(tmp_path)]))


def test_inputs_are_found_once(tmp_path):
    assert find_images([SAMPLES[1], f"{DIGITS}/sample_*.png"]) == [SAMPLES[1], SAMPLES[0], *SAMPLES[2:]]
    for inputs in ([], [str(tmp_path)], [str(tmp_path / "*.png")], [str(tmp_path / "none.png")]):
        with pytest.raises(ValueError, match="inputs must"):
            find_images(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.5}, "threshold must"), ({"top_k": 0}, "top_k must"), ({"batch_size": 0}, "batch_size must")],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        list(predict(DIGITS, SAMPLES[:1], **options))


def test_models_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="hf-vit translate"):
        list(predict(str(CARDS / "dates"), SAMPLES))
    with pytest.raises(ValueError, match="pools images"):
        embed(str(CARDS / "dates"), SAMPLES)
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.ForeignConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    (tmp_path / "configuration_foreign.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match="--trust_remote_code"):
        list(predict(str(tmp_path), SAMPLES))


def test_an_output_that_exists_is_refused(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.csv"
    output.write_text("kept")
    words = ["hf-vit", "predict", DIGITS, SAMPLES[0], "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert "--overwrite" in f"{ended.value} {capsys.readouterr().err}" and output.read_text() == "kept"
