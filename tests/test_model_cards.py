import json
import math

import pytest
from huggingface_hub import ModelCard

from model_cards import check_card, write_card

NUM_TEST = 360


def run_records(class_names=tuple(str(digit) for digit in range(10)), num_epochs=12, seed=0):
    """The records of a finished run over `class_names`, as training writes them."""
    import numpy

    generator = numpy.random.default_rng(seed)
    n = len(class_names)
    targets = numpy.repeat(numpy.arange(n), max(1, NUM_TEST // n))
    predicted = numpy.where(generator.random(targets.size) < 0.9, targets, generator.integers(0, n, targets.size))
    confusion = numpy.zeros((n, n), dtype=int)
    numpy.add.at(confusion, (targets, predicted), 1)
    hits, support, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    per_class = [
        {
            "label": name,
            "precision": float(h / max(f, 1)),
            "recall": float(h / s),
            "f1": float(2 * h / (f + s)),
            "support": int(s),
        }
        for name, h, s, f in zip(class_names, hits, support, found)
    ]
    epochs = [
        {
            "epoch": epoch + 1,
            "step": 23 * (epoch + 1),
            "learning_rate": 1e-3 * (1 - epoch / num_epochs),
            "train_loss": 2.3 * math.exp(-epoch / 3) + 0.02,
            "metrics": {
                "loss": 2.2 * math.exp(-epoch / 3) + 0.08,
                "accuracy": 1 - 0.8 * math.exp(-epoch / 2),
                "top5_accuracy": 1 - 0.3 * math.exp(-epoch / 2),
            },
            "duration_s": 1.9,
            "images_per_second": 756.4,
            "data_wait_fraction": 0.02,
        }
        for epoch in range(num_epochs)
    ]
    return {
        "task": "image_classification", "status": "finished",
        "command": "accelerate launch training/train.py --recipe digits", "recipe": "digits",
        "arguments": {"output_dir": "outputs/digits", "learning_rate": 1e-3, "num_train_epochs": num_epochs,
                      "per_device_train_batch_size": 64, "weight_decay": 0.05, "warmup_ratio": 0.1, "seed": seed,
                      "label_smoothing": 0.1, "train_dir": None},
        "non_default_arguments": ["learning_rate", "num_train_epochs"],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "transformers": "5.23.0", "hf_vit": "0.1.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567", "seed": seed,
        "hardware": {"device": "cpu", "device_name": "Some CPU", "num_processes": 1, "cpu_threads": 2,
                     "mixed_precision": "no"},
        "model": {"class": "HfViTForImageClassification", "num_parameters": 812_554,
                  "num_trainable_parameters": 812_554, "config": {"hidden_size": 128}},
        "data": {"name": "digits", "revision": None, "license": "cc-by-4.0", "image_column": "image",
                 "label_column": "label", "class_names": list(class_names),
                 "splits": {"train": {"num_examples": 1437, "class_counts": [143] * n, "fingerprint": "0a1b2c3d"},
                            "test": {"num_examples": len(targets), "class_counts": support.tolist(),
                                     "fingerprint": "4e5f6a7b"}}},
        "epochs": epochs,
        "result": {"split": "test", "num_examples": len(targets),
                   "metrics": {"loss": 0.0913, "accuracy": float(hits.sum() / len(targets)), "top5_accuracy": 0.9972,
                               "per_class": per_class, "confusion_matrix": confusion.tolist()}},
        "duration_s": {"training": 42.31, "total": 55.02}, "peak_memory_bytes": 812_000_000,
    }  # fmt: skip


@pytest.fixture
def write_run(tmp_path):
    def write(records):
        (tmp_path / "run.json").write_text(json.dumps(records))
        return tmp_path

    return write


def test_metadata_holds_the_recorded_results(write_run):
    records = run_records()
    card = ModelCard.load(write_card(write_run(records)))
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {name: value for name, value in records["result"]["metrics"].items() if isinstance(value, float)}
    assert found == expected
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"


def test_card_is_the_same_bytes_from_the_same_records(write_run):
    folder = write_run(run_records())
    first = write_card(folder).read_bytes()
    figure = (folder / "curves.png").read_bytes()
    assert write_card(folder).read_bytes() == first
    assert (folder / "curves.png").read_bytes() == figure
    assert check_card(folder) == []


def test_check_names_an_edited_number(write_run):
    folder = write_run(run_records())
    path = write_card(folder)
    path.write_text(path.read_text().replace("42.3 s", "12.3 s"))
    problems = check_card(folder)
    assert len(problems) == 1 and "12.3" in problems[0]
