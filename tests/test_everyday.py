"""Predictions, vectors and neighbours, against transformers' pipelines and plain numpy."""

import csv
import io
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_vit import (
    HfDetrConfig,
    HfDetrForObjectDetection,
    HfDetrForSegmentation,
    HfDetrImageProcessor,
    HfViTConfig,
    HfViTModel,
    cli,
    inputs,
)
from hf_vit.embed import embed, read_embeddings, search, write_embeddings
from hf_vit.inputs import find_images, find_texts
from hf_vit.predict import predict, predict_to, write_predictions
from hf_vit.translate import load_translator

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


def test_predictions_over_views_are_mean_probabilities(tmp_path):
    mirrored = [str(tmp_path / Path(name).name) for name in SAMPLES]
    for name, other in zip(SAMPLES, mirrored):
        Image.open(name).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    found = predict(DIGITS, SAMPLES, top_k=10, test_time_augmentation="flip")
    pair = [list(predict(DIGITS, names, top_k=10)) for names in (SAMPLES, mirrored)]
    for row, *sides in zip(found, *pair, strict=True):
        means = {each["label"]: 0.0 for each in row["predictions"]}
        for each in (each for side in sides for each in side["predictions"]):
            means[each["label"]] += each["score"] / 2
        assert {each["label"]: each["score"] for each in row["predictions"]} == pytest.approx(means, abs=1e-5)
    with pytest.raises(ValueError, match="has none"):
        next(predict(DIGITS, SAMPLES, apply_temperature=True))
    with pytest.raises(ValueError, match="must be one of flip, five_crop, ten_crop, got 'crop'"):
        next(predict(DIGITS, SAMPLES, test_time_augmentation="crop"))
    with pytest.raises(ValueError, match="are of classifiers"):
        next(predict(str(CARDS / "dates"), ["-"], apply_temperature=True))


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
    for names in ([], [str(tmp_path)], [str(tmp_path / "*.png")], [str(tmp_path / "none.png")]):
        with pytest.raises(ValueError, match="inputs must"):
            find_images(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.5}, "threshold must"), ({"top_k": 0}, "top_k must"), ({"batch_size": 0}, "batch_size must")],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        list(predict(DIGITS, SAMPLES[:1], **options))


def test_models_of_other_kinds_are_refused(tmp_path):
    model = HfViTModel(HfViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16))
    model.save_pretrained(tmp_path / "body")
    with pytest.raises(ValueError, match="must classify images, detect or segment objects"):
        list(predict(str(tmp_path / "body"), SAMPLES))
    with pytest.raises(ValueError, match="pools images"):
        embed(str(CARDS / "dates"), SAMPLES)
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.ForeignConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    (tmp_path / "configuration_foreign.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match="--trust_remote_code"):
        list(predict(str(tmp_path), SAMPLES))


def test_an_empty_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(ValueError, match="standard input names none"):
        list(predict(DIGITS, ["-"]))
    with pytest.raises(ValueError, match="inputs must hold at least one text, standard input is empty"):
        list(inputs.find_texts(["-"]).batches(2))
    with pytest.raises(ValueError, match=r"model must be a translator, .* is another kind of model"):
        load_translator(DIGITS)


def test_names_come_from_standard_input_and_images_from_addresses(monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=DIGITS))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/sample_1.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SAMPLES[0]}\n\n{address}\n"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = list(predict(DIGITS, ["-"], top_k=1))
    server.shutdown()
    server.server_close()
    assert [row["file"] for row in found] == [SAMPLES[0], address]
    assert [row["predictions"][0]["label"] for row in found] == ["7", "7"]


def test_an_output_that_exists_is_refused(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.csv"
    output.write_text("kept")
    words = ["hf-vit", "predict", DIGITS, SAMPLES[0], "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert "--overwrite" in f"{ended.value} {capsys.readouterr().err}" and output.read_text() == "kept"


# --- boxes, masks, texts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[HfDetrForObjectDetection, HfDetrForSegmentation])
def finder(request, tmp_path_factory):
    """A detector or segmenter of random weights, sure of what it sees."""
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = HfViTConfig(**backbone, image_size=32, patch_size=8, use_class_token=False, pooling="mean")
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    config = HfDetrConfig(backbone_config=backbone, **sizes, num_queries=1, id2label={0: "cat", 1: "dog"})
    model = request.param(config)
    torch.nn.init.constant_(model.class_labels_classifier.bias, 3.0)
    folder = tmp_path_factory.mktemp("finder")
    model.save_pretrained(folder)
    HfDetrImageProcessor.from_model_config(config).save_pretrained(folder)
    return str(folder)


def test_boxes_and_masks_are_those_of_the_pipelines_and_drawn(finder, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "scene.png")
    draws_masks = "Segmentation" in json.loads(Path(finder, "config.json").read_text())["architectures"][0]
    task = "image-segmentation" if draws_masks else "object-detection"
    expected = pipeline(task, model=finder, trust_remote_code=False)(image, threshold=0.5)
    output = predict_to(tmp_path / "found", finder, [str(tmp_path / "scene.png")], top_k=9)
    (row,) = map(json.loads, (output / "predictions.jsonl").read_text().splitlines())
    order = sorted(range(len(expected)), key=lambda index: -expected[index]["score"])
    assert len(expected) and [each["label"] for each in row["predictions"]] == [expected[i]["label"] for i in order]
    for each, peer in zip(row["predictions"], (expected[index] for index in order)):
        assert each["score"] == pytest.approx(peer["score"], abs=1e-5)
        if draws_masks:
            mask = coco_masks.decode({**each["mask"], "counts": each["mask"]["counts"].encode()})
            np.testing.assert_array_equal(mask, np.asarray(peer["mask"]) > 127)
        else:
            assert each["box"] == peer["box"]
    drawn = np.asarray(Image.open(output / "scene.png"))
    assert drawn.shape == (40, 60, 3) and (drawn != np.asarray(image)).any()


def test_a_folder_of_pictures_is_for_objects(tmp_path):
    with pytest.raises(ValueError, match="pictures are of what detectors find"):
        predict_to(tmp_path / "out", DIGITS, SAMPLES)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    whole = predict_to(tmp_path / "whole.jsonl", DIGITS, SAMPLES, batch_size=1).read_bytes()
    read, seen = inputs._read, []

    def breaks(name):
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read(name)

    monkeypatch.setattr(inputs, "_read", breaks)
    with pytest.raises(KeyboardInterrupt):
        predict_to(tmp_path / "out.jsonl", DIGITS, SAMPLES, batch_size=1)
    partial = tmp_path / "out.jsonl.partial"
    assert not (tmp_path / "out.jsonl").exists() and len(partial.read_text().splitlines()) == 3
    partial.write_text(partial.read_text() + '{"file": "half')  # as a crash leaves it
    seen += [None]  # it breaks no more
    for other in ({"top_k": 2}, {"inputs": SAMPLES[:3]}):  # never mixed with what was asked for before
        given = {"inputs": SAMPLES, "batch_size": 1, **other}
        with pytest.raises(ValueError, match="interrupted run with another model, other inputs or options"):
            predict_to(tmp_path / "out.jsonl", DIGITS, **given)
    assert predict_to(tmp_path / "out.jsonl", DIGITS, SAMPLES, batch_size=1).read_bytes() == whole
    assert seen[4:] == SAMPLES[2:] and not partial.exists()


def test_texts_are_translated_with_their_scores(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("piatok 31. marca 2084\n\n3 mai 1999\n", encoding="utf-8")
    rows = list(predict(str(CARDS / "dates"), [str(file)], top_k=2))
    assert [row["file"] for row in rows] == [f"{file}:{line}" for line in (1, 2, 3)]
    first = rows[0]["predictions"]
    assert first[0]["translation_text"] == "2084-03-31" and len(first) == 2 and first[0]["score"] > first[1]["score"]
    # The mean of what beam search adds up.
    translator = load_translator(str(CARDS / "dates"))
    source = translator.tokenizer(rows[0]["text"], return_tensors="pt")
    options = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 1.0, "output_scores": True}
    found = translator.model.generate(**source, **options, return_dict_in_generate=True)
    assert [each["score"] for each in first] == pytest.approx(found.sequences_scores.exp().tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="inputs must be files of texts"):
        list(predict(str(CARDS / "dates"), [str(tmp_path / "none.txt")]))


def test_files_that_are_no_text_are_named_and_skipped(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes("\ufeffein\u2028e\r\n\r\nzwei".encode())
    (tmp_path / "b.txt").write_bytes("fünf".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes(b"drei\rvier\n")
    pattern = str(tmp_path / "*.txt")
    found = [text for batch in find_texts([pattern]).batches(2) for text in batch]
    texts = {f"{tmp_path}/a.txt": ["ein\u2028e", "", "zwei"], f"{tmp_path}/c.txt": ["drei", "vier"]}
    assert found == [(f"{name}:{line}", each) for name in texts for line, each in enumerate(texts[name], 1)]
    assert "b.txt is not UTF-8" in caplog.text and "1 of 3 files of texts could not be read" in caplog.text
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="files of texts that can be read, none of 1 can be read"):
        list(find_texts([pattern]).batches(2))
