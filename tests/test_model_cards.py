import json
import math
import re
from itertools import pairwise

import numpy
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from model_cards import check_card, write_card
from model_cards.citations import of_methods

DIGITS = [str(digit) for digit in range(10)]


def run_records(class_names=DIGITS, num_epochs=12, images_per_class=36):
    """What training leaves in run.json, for a classifier that is right in nine cases of ten."""
    generator = numpy.random.default_rng(0)
    n = len(class_names)
    targets = numpy.repeat(numpy.arange(n), images_per_class)
    predictions = numpy.where(generator.random(targets.size) < 0.9, targets, generator.integers(0, n, targets.size))
    confusion = numpy.zeros((n, n), dtype=int)
    numpy.add.at(confusion, (targets, predictions), 1)
    hits, support, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    per_class = [
        {"label": name, "precision": h / max(f, 1), "recall": h / s, "f1": 2 * h / (f + s), "support": int(s)}
        for name, h, s, f in zip(class_names, hits.tolist(), support.tolist(), found.tolist())
    ]
    epochs = [
        {
            "epoch": epoch + 1,
            "step": 23 * (epoch + 1),
            "learning_rate": 1e-3 * (1 - epoch / num_epochs),
            "train_loss": 2.3 * math.exp(-epoch / 3) + 0.02,
            "metrics": {"loss": 2.2 * math.exp(-epoch / 3) + 0.08, "accuracy": 1 - 0.8 * math.exp(-epoch / 2)},
            "duration_s": 1.9,
            "images_per_second": 756.4,
        }
        for epoch in range(num_epochs)
    ]
    return {
        "task": "image_classification",
        "status": "finished",
        "command": "accelerate launch training/train.py --recipe digits --output_dir /home/someone/outputs/digits",
        "recipe": "digits",
        "arguments": {
            "output_dir": "/home/someone/outputs/digits",
            "hub_token": "hf_secret",
            "train_dir": None,
            "learning_rate": 0.0017,
            "weight_decay": 0.05,
            "lr_scheduler_type": "cosine",
        },
        "non_default_arguments": ["learning_rate", "output_dir"],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "hf_vit": "0.1.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "seed": 7,
        "hardware": {"device": "cpu", "device_name": "Some CPU", "num_processes": 1, "mixed_precision": "no"},
        "model": {"class": "HfViTForImageClassification", "num_parameters": 812_554},
        "data": {
            "name": "digits",
            "revision": None,
            "license": "cc-by-4.0",
            "class_names": list(class_names),
            "splits": {
                "train": {"num_examples": 143 * n, "class_counts": [143] * n, "fingerprint": "0a1b2c3d"},
                "test": {"num_examples": targets.size, "class_counts": support.tolist(), "fingerprint": "4e5f6a7b"},
            },
        },
        "epochs": epochs,
        "result": {
            "split": "test",
            "num_examples": targets.size,
            "metrics": {
                "loss": 0.0913,
                "accuracy": float((targets == predictions).mean()),
                "per_class": per_class,
                "confusion_matrix": confusion.tolist(),
                "calibration": [
                    {"confidence": confidence, "accuracy": confidence - 0.04, "num_examples": 120}
                    for confidence in (0.55, 0.75, 0.95)
                ],
            },
        },
        "duration_s": {"training": 42.31, "total": 55.02},
        "peak_memory_bytes": 812_000_000,
    }


@pytest.fixture
def write_run(tmp_path):
    """Writes records into a folder as a run does, and returns the folder."""

    def write(records, **files):
        (tmp_path / "run.json").write_text(json.dumps(records))
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        return tmp_path

    return write


def tables(text):
    """What a Markdown reader shows of a card's tables: {header: rows of cell texts}, and the kinds of its inlines."""
    found, kinds, row = {}, set(), None
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            found[tuple(rows[0])] = rows[1:]
        elif token.type in ("th_open", "td_open"):
            row = rows[-1]
        elif token.type == "inline" and row is not None:
            row.append("".join(child.content for child in token.children))
            kinds.update(child.type for child in token.children)
            row = None
    return found, kinds


NBSP = "\u00a0"
PER_CLASS = ("Class", "Precision", "Recall", "F1", "Images")


def test_metadata_holds_the_recorded_results(write_run):
    records = run_records()
    data = ModelCard.load(write_card(write_run(records))).data
    recorded = {name: value for name, value in records["result"]["metrics"].items() if isinstance(value, float)}
    assert {result.metric_type: result.metric_value for result in data.eval_results} == recorded
    assert {(result.task_type, result.dataset_split) for result in data.eval_results} == {
        ("image-classification", "test")
    }
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "image-classification",
        "transformers",
        "apache-2.0",
    )
    assert data.datasets is None, "only data with a revision is known to be on the Hub"


def test_body_shows_the_recorded_numbers(write_run):
    records = run_records()
    text = write_card(write_run(records)).read_text()
    found, _ = tables(text)
    assert ["Accuracy", f"{100 * records['result']['metrics']['accuracy']:.2f}{NBSP}%"] in found["Metric", "Value"]
    assert ["Training", f"42.3{NBSP}s"] in found["Measured", "Value"]
    assert found[PER_CLASS] == [
        [score["label"], *(f"{100 * score[name]:.2f}{NBSP}%" for name in ("precision", "recall", "f1")), "36"]
        for score in records["result"]["metrics"]["per_class"]
    ]


def test_same_records_give_the_same_bytes(write_run):
    folder = write_run(run_records())
    names = ["README.md", "curves.png", "confusion_matrix.png", "reliability.png"]
    write_card(folder)
    first = [(folder / name).read_bytes() for name in names]
    assert all(len(content) < 150_000 for content in first)
    write_card(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert check_card(folder) == []


@pytest.mark.parametrize("number, other", [("42.3", "12.3"), ("812,554", "812,555"), ("0.0913", "0.0912")])
def test_check_names_an_edited_number(write_run, number, other):
    folder = write_run(run_records())
    path = write_card(folder)
    text = path.read_text()
    assert number in text
    path.write_text(text.replace(number, other))
    problems = check_card(folder)
    assert problems and all(other in problem for problem in problems)


def test_check_notices_what_is_left_over_from_other_records(write_run):
    records = run_records()
    folder = write_run(records)
    write_card(folder)
    records["epochs"][-1]["metrics"]["accuracy"] = 0.5
    write_run(records)
    assert check_card(folder) == ["curves.png was not drawn from these records"]
    (folder / "curves.png").unlink()
    assert check_card(folder) == ["curves.png is missing"]


@pytest.mark.parametrize("removed", [None, "result", "data", "model", "epochs", "arguments", "hardware", "versions"])
def test_sparse_records_leave_no_trace(write_run, removed):
    records = run_records(num_epochs=1)
    if removed is None:
        records = {"task": "image_classification"}
    else:
        del records[removed]
    records.setdefault("result", {}).setdefault("metrics", {})["f1_macro"] = float("nan")
    folder = write_run(records)
    text = write_card(folder).read_text()
    assert not re.search(r"\b(None|null|nan|inf|Undefined)\b|\{%|\[More| \(\)|\|  \|", text)
    lines = [line for line in text.splitlines() if line]
    headings = ["#" * 6 if line.startswith("## ") else line for line in [*lines, "## "]]
    assert not any(now == then == "#" * 6 for now, then in pairwise(headings)), "a section without content"
    assert check_card(folder) == []


NASTY_NAMES = [
    "a|b", "<script>alert(1)</script>", "`code`", "[link](https://evil.example)", "**bold**", "_em_ snake_case",
    "$x^2$", "&amp; &lt;", "https://evil.example", "back\\slash |", "~~gone~~", "<!-- comment", "![i](x)", "# title",
]  # fmt: skip


def test_class_names_are_shown_as_written(write_run):
    text = write_card(write_run(run_records([*NASTY_NAMES, "word " * 60]))).read_text()
    found, kinds = tables(text)
    shown = [row[0] for row in found[PER_CLASS]]
    assert shown[:-1] == NASTY_NAMES
    assert len(shown[-1]) == 80 and shown[-1].endswith("…")
    assert not kinds & {"html_inline", "link_open", "image", "em_open", "s_open"}
    assert "https://evil" not in text, "a reader that links bare addresses would link it"


def test_thousand_classes_fit(write_run):
    folder = write_run(run_records([f"class {i}" for i in range(1000)], images_per_class=5))
    text = write_card(folder).read_text()
    assert len(text.splitlines()) < 400
    assert not (folder / "confusion_matrix.png").exists()
    recorded = {
        row["label"]: row["f1"]
        for row in json.loads((folder / "run.json").read_text())["result"]["metrics"]["per_class"]
    }
    shown = [recorded[row[0]] for row in tables(text)[0][PER_CLASS]]
    assert len(shown) < 30 and (max(shown), min(shown)) == (max(recorded.values()), min(recorded.values()))


def test_nothing_private_is_told(write_run):
    text = write_card(write_run(run_records())).read_text()
    assert "/home" not in text and "hf_secret" not in text
    assert "--output_dir digits" in text


def test_author_text_and_its_errors(write_run):
    folder = write_run(run_records(), card__yaml="intended_use: Reading postcodes.\nlicense: mit\n")
    card = ModelCard.load(write_card(folder))
    assert card.data.license == "mit" and "Reading postcodes." in card.text
    (folder / "card.yaml").write_text("intended_uses: x\n")
    with pytest.raises(ValueError, match="'intended_uses'; did you mean 'intended_use'"):
        write_card(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "holds no run.json"),
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "its task"),
        ('{"task": "cooking"}', "'cooking'.*image_classification"),
    ],
)
def test_bad_records(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_citations_are_of_the_methods_used(write_run):
    config = {"model_type": "hf_vit", "pooling": ["cls", "attention"], "position_embedding": "rope_2d"}
    text = write_card(write_run(run_records())).read_text()
    assert "1711.05101" in text and "2010.11929" not in text, "without a configuration only the training is known"
    found = [paper.arxiv for paper in of_methods(config, {"weight_decay": 0.0})]
    assert found == ["2010.11929", "2508.10104", "2106.04560"]


def test_snippets_are_executed_and_cost_is_measured(write_run):
    from transformers import ViTImageProcessor

    from hf_vit import HfViTConfig, HfViTForImageClassification

    size, patch, width, depth, mlp, classes = 32, 8, 16, 2, 32, 10
    config = HfViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=mlp, image_size=size,
        patch_size=patch, num_register_tokens=1, id2label=dict(enumerate(DIGITS)),
    )  # fmt: skip
    records = run_records()
    records["arguments"]["hub_model_id"] = "someone/digits"
    records["result"]["samples"] = [{"file": "sample_0.png", "label": "3", "prediction": "3", "score": 0.9}]
    folder = write_run(records)
    model = HfViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": size, "width": size}, do_convert_rgb=True)
    processor.save_pretrained(folder)
    image = Image.linear_gradient("L").resize((8, 8))
    image.save(folder / "sample_0.png")

    text = write_card(folder).read_text()
    logits = model(**processor(image, return_tensors="pt")).logits[0]
    score, index = logits.softmax(-1).max(-1)
    assert text.count(f"```\n{index.item()}: {score.item():.4f}\n") == 2, "the Auto classes and the pipeline"

    measured = json.loads((folder / "run.json").read_text())["card"]
    patches = (size // patch) ** 2
    tokens = patches + 2
    layer = 2 * tokens * width * (3 * width + width + 2 * mlp) + 2 * 2 * tokens * tokens * width
    assert measured["flops"] == 2 * patches * 3 * patch**2 * width + depth * layer + 2 * width * classes
    assert (measured["input_shape"], measured["num_patches"], measured["num_prefix_tokens"]) == ([3, 32, 32], 16, 2)
    assert check_card(folder) == []
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[::-1])
    assert any("model's files" in problem for problem in check_card(folder))
