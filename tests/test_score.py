"""Scores of saved models against a pipeline's own answers."""

import json

import datasets
import numpy as np
import pytest
import torch
from classifiers import NAMES, save
from PIL import Image
from transformers import EfficientNetImageProcessor, pipeline

from hf_vit import score


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(names=NAMES, count=23):
        random = np.random.default_rng(0)
        images = [Image.fromarray(random.integers(0, 256, (30, 26, 3), dtype=np.uint8)) for _ in range(count)]
        labels = [names[i] for i in random.integers(0, len(names), count)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        test = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
        datasets.DatasetDict(test=test).save_to_disk(tmp_path / "data")
        return str(tmp_path / "data"), images, labels

    return make


@pytest.mark.parametrize("kind", ["ours", "vit", "cnn", "efficientnet"])
def test_the_score_is_that_of_the_pipelines_answers(tmp_path, source, kind):
    # The data's classes stand in another order than the model's, and one of the model's is missing.
    data, images, labels = source(["cow", "ant"])
    path, _ = save(tmp_path / kind, "cnn" if kind == "efficientnet" else kind)
    if kind == "efficientnet":
        EfficientNetImageProcessor(size={"height": 24, "width": 24}, do_center_crop=False).save_pretrained(path)
    output = tmp_path / "score"
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--per_device_eval_batch_size=5"]
    score.main([*flags, "--output_dir", str(output)])
    record = json.loads((output / "score.json").read_text())
    answers = [rows[0] for rows in pipeline("image-classification", model=path, device="cpu")(images)]
    metrics = record["result"]["metrics"]
    assert record["result"]["num_examples"] == len(images)
    assert metrics["accuracy"] == np.mean([answer["label"] == label for answer, label in zip(answers, labels)])
    matrix = np.zeros((3, 3), int)
    for answer, label in zip(answers, labels):
        matrix[NAMES.index(label), NAMES.index(answer["label"])] += 1
    assert metrics["confusion_matrix"] == matrix.tolist()
    for name in ("confusion_matrix.png", "reliability.png"):
        assert Image.open(output / name).size > (100, 100)
    with pytest.raises(ValueError, match="is not empty"):
        score.main([*flags, "--output_dir", str(output)])


def test_classes_the_model_does_not_know_are_refused_by_name(tmp_path, source):
    data, _, _ = source(["ant", "dog"])
    path, _ = save(tmp_path / "model")
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")]
    with pytest.raises(ValueError, match="labels without a class: dog"):
        score.main(flags)
    with pytest.raises(ValueError, match="--split 'train' is not in the data; its splits: test"):
        score.main([*flags, "--split=train"])
    assert not (tmp_path / "score").exists()


def test_classes_of_other_names_may_come_in_the_same_order(tmp_path, source):
    data, images, labels = source(["ant", "bee", "cow"])
    path, _ = save(tmp_path / "model", "vit", names=["Ant", "Ant", "Cow"])
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")]
    with pytest.raises(ValueError, match="of the same name: --class_order index"):
        score.main(flags)
    record = score.main([*flags, "--class_order=index"])
    classifier = pipeline("image-classification", model=path, device="cpu")
    own = classifier.model(**classifier.image_processor(images, return_tensors="pt")).logits.argmax(-1)
    assert record["result"]["metrics"]["accuracy"] == np.mean([NAMES[i] == label for i, label in zip(own, labels)])
    path, _ = save(tmp_path / "other", "vit", names=["Ant", "Bee"])
    with pytest.raises(ValueError, match="the data has 3 classes, the model 2"):
        score.main(["--model_name_or_path", path, *flags[2:], "--class_order=index", "--overwrite_output_dir"])


def test_a_models_name_is_required(capsys):
    with pytest.raises(SystemExit):
        score.main(["--dataset_name=x"])
    assert "--model_name_or_path is required" in capsys.readouterr().err


def test_the_scored_images_pass_through_the_models_own_processor(tmp_path, source):
    data, images, _ = source()
    path, model = save(tmp_path / "model")
    seen = []
    model_class = type(model)
    original = model_class.forward

    def forward(self, pixel_values, **kwargs):
        seen.append(pixel_values)
        return original(self, pixel_values, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "forward", forward)
        score.main(["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")])
    own = pipeline("image-classification", model=path, device="cpu").image_processor(images, return_tensors="pt")
    assert torch.equal(torch.cat(seen), own["pixel_values"])
