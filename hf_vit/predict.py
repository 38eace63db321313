"""Predictions of a saved or published model: the classes of images, the boxes of objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import pipeline

from hf_vit.files import write_atomically
from hf_vit.inputs import find_images, load_config, read_images

OUTPUTS = (".csv", ".jsonl")
_TASKS = {"ForImageClassification": "image-classification", "ForObjectDetection": "object-detection"}
_Row = dict[str, Any]


def predict(
    model: str,
    inputs: Sequence[str],
    *,
    top_k: int = 5,
    threshold: float | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[_Row]:
    """What a model says of images, as transformers' pipelines do, image by image.

    Args:
        model: an image classifier or an object detector, its id on the Hub or its folder.
        inputs: files, folders, patterns and addresses, see `hf_vit.inputs.find_images`.
        top_k: classes of an image, the likeliest first; of a detector, boxes.
        threshold: leaves out what scores less, between 0 and 1; a detector's is 0.5 unless given, a classifier's 0.

    Yields:
        `{"file": name, "predictions": [{"label": class, "score": probability}, ...]}`; of a detector each prediction
        has its `"box"` too, in pixels. Images that cannot be read are skipped with a warning.

    Raises:
        ValueError: an argument is out of range, no image is found or can be read, or the model is of another task.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    names = find_images(inputs)
    task = _task_of(load_config(model, revision, trust_remote_code), model)
    pipe: Any = pipeline(task, model=model, revision=revision, trust_remote_code=trust_remote_code)  # type: ignore
    options: dict[str, Any] = {"top_k": top_k}
    if task == "object-detection":
        options = {"threshold": 0.5 if threshold is None else threshold}
    for batch, images in read_images(names, batch_size):
        for name, found in zip(batch, pipe(images, batch_size=len(images), **options)):
            best = sorted(found, key=lambda each: -each["score"])[:top_k]
            yield {"file": name, "predictions": [each for each in best if each["score"] >= (threshold or 0)]}


def _task_of(config: Any, model: str) -> str:
    architectures = config.architectures or []
    for ending, task in _TASKS.items():
        if any(name.endswith(ending) for name in architectures):
            return task
    hint = "; `hf-vit translate` translates" if any("ConditionalGeneration" in name for name in architectures) else ""
    raise ValueError(
        f"model must classify images or detect objects, {model!r} is {', '.join(architectures) or 'neither'}{hint}"
    )


def write_predictions(rows: Sequence[_Row], output: Path) -> Path:
    """The file of all rows: of `.jsonl` a line an image, of `.csv` a line a prediction, with its rank from 1 on."""
    if output.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return write_atomically(output, text.encode())
    flat = [
        {"file": row["file"], "rank": rank, "label": each["label"], "score": each["score"], **each.get("box", {})}
        for row in rows
        for rank, each in enumerate(row["predictions"], 1)
    ]
    boxes = dict.fromkeys(name for row in flat for name in row)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(boxes) or ["file", "rank", "label", "score"])
    writer.writeheader()
    writer.writerows(flat)
    return write_atomically(output, table.getvalue().encode())
