"""Nearest neighbours and a linear probe of the frozen start, against scikit-learn on vectors taken another way."""

import json

import numpy as np
import pytest
import torch
import training_runs
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hf_vit import HfViTModel, train
from hf_vit.tasks.image_classification.baselines import knn_and_probe
from hf_vit.tasks.image_classification.task import ImageClassification
from hf_vit.vision.processors import normalize

RUN = [word for word in training_runs.TINY if not word.startswith(("--config_overrides", "--num_train", "--image_s"))]
RUN += ["--dataset_name=sklearn_digits", "--num_train_epochs=1", "--per_device_train_batch_size=50"]

LINEAR = ("projection", "qkv_proj", "out_proj", "fc1", "fc2")


def vectors_of(task, model, split):
    """The body's own pooled vectors, and the labels."""
    found = [
        (normalize(batch["pixel_values"], task.processor), batch["labels"]) for batch in task.evaluation_loader(split)
    ]
    with torch.inference_mode():
        return torch.cat([model(pixel_values=pixels).pooler_output for pixels, _ in found]).numpy(), np.concatenate(
            [labels for _, labels in found]
        )


def test_a_run_from_a_checkpoint_tells_and_keeps_what_scikit_learn_reaches(tiny_run, tmp_path, caplog):
    words = [*RUN, f"--model_name_or_path={tiny_run}", f"--output_dir={tmp_path / 'tuned'}", "--lora_r=2"]
    with caplog.at_level("INFO", logger="hf_vit"):
        train.main(words)
    task = ImageClassification(train.parse(words))
    body = HfViTModel.from_pretrained(tiny_run).eval()
    (vectors, labels), (test_vectors, test_labels) = (vectors_of(task, body, each) for each in ("train", "test"))
    knn = KNeighborsClassifier(n_neighbors=20, metric="cosine", weights="distance").fit(vectors, labels)
    scaler = StandardScaler().fit(vectors)
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(vectors), labels)
    expected = {
        "kNN": knn.score(test_vectors, test_labels),
        "linear probe": probe.score(scaler.transform(test_vectors), test_labels),
    }
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert record["baselines"] == expected and min(expected.values()) > 0.2
    told = f"(the frozen start: kNN {expected['kNN']:.2%}, linear probe {expected['linear probe']:.2%})"
    result = next(message for message in caplog.messages if "of training" in message)
    assert result.endswith(told)
    assert any(message.startswith("the frozen start on test: kNN") for message in caplog.messages)
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "| linear probe |" in card and "Adapters of rank 2" in card
    # The adapters beside the whole model, and what is not adapted as it was.
    assert (tmp_path / "tuned" / "adapter" / "adapter_model.safetensors").is_file()
    tuned = HfViTModel.from_pretrained(tmp_path / "tuned").state_dict()
    assert (
        record["model"]["num_parameters"] == json.loads((tiny_run / "run.json").read_text())["model"]["num_parameters"]
    )
    changed = {name for name, before in body.state_dict().items() if not torch.equal(before, tuned[name])}
    assert changed == {name for name in tuned if name.endswith((*(f"{layer}.weight" for layer in LINEAR),))}


def test_few_images_and_one_class_are_no_obstacle():
    vectors, labels = np.eye(3, dtype=np.float32), np.zeros(3, np.int64)
    assert knn_and_probe((vectors, labels), (vectors, labels)) == {"kNN": 1.0}


def test_it_is_asked_for_where_it_can_be():
    for word in ("--problem_type=multi_label_classification", "--streaming"):
        with pytest.raises(ValueError, match="--baseline is of one label an image"):
            train.parse(["--recipe=digits", "--baseline", word])
