"""Records of a run for tests of its card, and what a reader sees of one."""

import json
import math

import numpy
from markdown_it import MarkdownIt

from hf_vit.cards.card import facts_of, render

DIGITS = [str(digit) for digit in range(10)]
NBSP = "\u00a0"


def run_records(class_names=DIGITS, num_epochs=12, images_per_class=36):
    """The run.json of a training, for a classifier that is right in nine cases of ten."""
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


def write_run(folder, records, **files):
    """Writes records, and files with `__` for the dot of their names, into a folder as a run does; returns it."""
    (folder / "run.json").write_text(json.dumps(records))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def text_of(folder, records):
    """The card of these records, without drawing its figures."""
    return render(facts_of(write_run(folder, records)))


def tables(text):
    """A card's tables as a Markdown reader shows them: {header: rows of cell texts}, and the kinds of its inlines."""
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
