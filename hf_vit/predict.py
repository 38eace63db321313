"""Predictions of a saved or published model: classes of images, boxes and masks of objects, texts of images, and
translations of texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import pipeline

from hf_vit.drawing import draw_objects
from hf_vit.extras import extra
from hf_vit.files import read_object, write_atomically
from hf_vit.inputs import Texts, find_images, find_texts, load_config, opened, read_images

OUTPUTS = (".csv", ".jsonl", "")  # the last of a folder of pictures
ROWS = "predictions.jsonl"  # of a folder
_TASKS = {
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSegmentation": "image-segmentation",
    "ForImageToText": "image-to-text",
    "ForConditionalGeneration": "translation",
    "MarianMTModel": "translation",
}
_DRAWN = ("object-detection", "image-segmentation")
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
    apply_temperature: bool = False,
    test_time_augmentation: str | None = None,
    skip: frozenset[str] = frozenset(),
) -> Iterator[_Row]:
    """Say what a model makes of its inputs, as transformers' pipelines do, one by one.

    Args:
        model: a classifier of images, a detector, a segmenter, a model that writes texts of images or a translator,
            its id on the Hub or its folder.
        inputs: images by file, folder, pattern and address, see `hf_vit.inputs.find_images`; of a translator files of
            texts, a text a line. `-` stands for the lines of standard input: names of images, or texts.
        top_k: predictions of an input at most, the likeliest first; of a text, the best found by as many beams.
        threshold: leaves out what scores less, between 0 and 1; unless given a detector's is that of its best F1, if
            its folder says so, or 0.5, that of others 0, but where several labels an image have one each.
        apply_temperature, test_time_augmentation: of a classifier of one label an image; see `hf-vit score --help`.
        skip: names of inputs (`file`) that are left out.

    Yields:
        `{"file": name, "predictions": [{"label": class, "score": probability}, ...]}`; of a detector each prediction
        has its `"box"` too, in pixels, of a segmenter its `"mask"`, COCO's run lengths. A model that writes texts of
        images gives `{"generated_text": ..., "score": ...}`, the geometric mean of its tokens' probabilities. Of a
        text to translate `file` is `name:line`, `text` the text itself, and each prediction `{"translation_text": ...,
        "score": ...}`, the same mean. Images and files that cannot be read are skipped with a warning.

    Raises:
        ValueError: an argument is out of range, nothing is found or can be read, or the model is of another task.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    task = task_of(model, revision, trust_remote_code)
    is_adjusted = apply_temperature or test_time_augmentation is not None
    if is_adjusted and task != "image-classification":
        raise ValueError(f"apply_temperature and test_time_augmentation are of classifiers, {model!r} is for {task}")
    if task == "translation":
        texts = find_texts(inputs)
        yield from _translations(model, texts, top_k, threshold or 0.0, batch_size, revision, skip)
        return
    names = [name for name in find_images(inputs) if name not in skip]
    if not names:
        return
    if task == "image-to-text":
        yield from _texts_of_images(model, names, top_k, threshold or 0.0, batch_size, revision)
        return
    any_task: Any = task  # the types of transformers list its own names alone
    pipe: Any = pipeline(any_task, model=model, revision=revision, trust_remote_code=trust_remote_code)
    if is_adjusted:
        pipe.model = _adjusted(pipe.model, apply_temperature, test_time_augmentation)
    options: dict[str, Any] = {"top_k": top_k}
    if task in _DRAWN:
        threshold = threshold_of(model) if threshold is None else threshold
        options = {"threshold": threshold}
    config = load_config(model, revision, trust_remote_code)
    several = getattr(config, "label_thresholds", None) if threshold is None else None
    least = dict(zip((config.id2label[index] for index in range(len(several or ()))), several or ()))
    for batch, images in read_images(names, batch_size):
        for name, found in zip(batch, pipe(images, batch_size=len(images), **options)):
            best = sorted(found, key=lambda each: -each["score"])[:top_k]
            best = [as_json(each) for each in best if each["score"] >= (threshold or least.get(each["label"], 0))]
            yield {"file": name, "predictions": best}


def _adjusted(model: Any, apply_temperature: bool, augmentation: str | None) -> Any:
    """The classifier with its temperature applied, over views of each image."""
    with extra("train"):
        from hf_vit.tasks.image_classification.arguments import TestTimeArguments
        from hf_vit.tasks.image_classification.calibration import VIEWS, adjusted
    if augmentation not in (None, *VIEWS):
        raise ValueError(f"test_time_augmentation must be one of {', '.join(VIEWS)}, got {augmentation!r}")
    if model.config.problem_type == "multi_label_classification":
        raise ValueError("apply_temperature and test_time_augmentation are of one label an image")
    given = TestTimeArguments(apply_temperature=apply_temperature, test_time_augmentation=augmentation)
    return adjusted(model, given)


def task_of(model: str, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """Return the task of transformers' pipelines that a model is for.

    Raises:
        ValueError: none that is known here.
    """
    config = load_config(model, revision, trust_remote_code)
    architectures = config.architectures or []
    for ending, task in _TASKS.items():
        if any(name.endswith(ending) for name in architectures):
            return task
    raise ValueError(
        "model must classify images, detect or segment objects, write texts of images, or translate texts, "
        f"{model!r} is {', '.join(architectures) or 'none of these'}"
    )


def threshold_of(model: str) -> float:
    """Return the least score of an object that a detector's folder recommends, that of its best F1, or 0.5."""
    record = Path(model, "run.json")
    if not record.is_file():
        return 0.5
    metrics = (read_object(record).get("result") or {}).get("metrics") or {}
    best = metrics.get("best_threshold")
    return 0.5 if best is None else float(best)


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """A prediction of a pipeline as JSON holds it."""
    if "mask" not in found:
        return found
    import numpy as np

    from hf_vit.vision.annotations.rows import encode_mask

    mask = encode_mask(np.asarray(found["mask"]) > 127)
    return {**found, "mask": {"size": list(mask["size"]), "counts": mask["counts"].decode()}}


def _translations(
    model: str,
    texts: Texts,
    top_k: int,
    threshold: float,
    batch_size: int,
    revision: str | None,
    skip: frozenset[str],
) -> Iterator[_Row]:
    import torch

    from hf_vit.translate import load_translator, scores_of

    translator = load_translator(model, revision)
    beams = max(translator.model.generation_config.num_beams or 1, top_k)
    for batch in texts.batches(batch_size, skip):
        found = translator([text for _, text in batch], num_beams=beams, num_return_sequences=top_k)
        for (name, text), answers in zip(batch, found):
            several = answers if isinstance(answers, list) else [answers]
            with torch.inference_mode():
                scores = scores_of(translator, text, [each["translation_text"] for each in several])
            rows = [{**each, "score": score} for each, score in zip(several, scores) if score >= threshold]
            yield {"file": name, "text": text, "predictions": rows}


def _texts_of_images(
    model: str, names: list[str], top_k: int, threshold: float, batch_size: int, revision: str | None
) -> Iterator[_Row]:
    from hf_vit.read import load_reader, read

    reader = load_reader(model, revision)
    for batch, images in read_images(names, batch_size):
        for name, found in zip(batch, read(reader, images, top_k)):
            yield {"file": name, "predictions": [each for each in found if each["score"] >= threshold]}


def told(row: _Row) -> str:
    """One line on a row, for the terminal."""
    written = [name for each in row["predictions"] for name in ("translation_text", "generated_text") if name in each]
    if "text" in row or written:
        answers = "; ".join(f"{each[written[0]]} ({each['score']:.3f})" for each in row["predictions"])
    else:
        answers = ", ".join(f"{each['label']} {each['score']:.3f}" for each in row["predictions"])
    return f"{row['file']}: {answers}"


def predict_to(output: Path, model: str, inputs: Sequence[str], **options: Any) -> Path:
    """Write the predictions of all inputs: a line of JSON each (`.jsonl`), a line a prediction with its rank from 1 on
    (`.csv`), or a folder of pictures with boxes and masks and their `predictions.jsonl`.

    Until the last is there they stand in a file beside it, `NAME.partial`, from which a run that was interrupted goes
    on when it is started again; what came from standard input begins anew.

    Raises:
        ValueError: as for `predict`; a folder is asked for, and the model draws no objects; or an interrupted run was
            of another model, other inputs or other options.
    """
    if output.suffix == "":
        task = task_of(model, options.get("revision"), options.get("trust_remote_code", False))
        if task not in _DRAWN:
            raise ValueError(
                f"output must be a .csv or .jsonl, {str(output)!r} is a folder: pictures are of what detectors find"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    request = {"model": model, "weights": _weights_of(model), "inputs": list(inputs), **options}
    if "-" in inputs:
        partial.unlink(missing_ok=True)
    rows = _rows_of(partial, request)
    with partial.open("a", encoding="utf-8") as file:
        if not rows:
            file.truncate(0)
            file.write(json.dumps(request, ensure_ascii=False) + "\n")
        for row in predict(model, inputs, skip=frozenset(row["file"] for row in rows), **options):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            rows.append(row)
    if output.suffix == "":
        _write_pictures(rows, output)
    else:
        write_predictions(rows, output)
    partial.unlink()
    return output


def _weights_of(model: str) -> list[list[Any]]:
    """Name, size and time of the weights in a folder, which tell one training from the next."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _rows_of(partial: Path, request: dict[str, Any]) -> list[_Row]:
    """The whole lines of a run that was interrupted; what it left half written is cut off.

    Raises:
        ValueError: it was asked for something else.
    """
    if not partial.is_file():
        return []
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = [json.loads(line) for line in whole.splitlines()]
    if not lines:
        return []
    if lines[0] != json.loads(json.dumps(request)):
        raise ValueError(
            f"{partial} is of an interrupted run with another model, other inputs or options: delete it to begin anew"
        )
    if len(whole) < len(content):
        write_atomically(partial, whole)
    return lines[1:]


def _write_pictures(rows: Sequence[_Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, int] = {}
    for row in rows:
        stem = Path(row["file"]).stem or "image"
        names[stem] = names.get(stem, 0) + 1
        name = f"{stem}.png" if names[stem] == 1 else f"{stem}_{names[stem]}.png"
        drawn = draw_objects(opened(row["file"]), row["predictions"])
        content = io.BytesIO()
        drawn.save(content, format="PNG")
        write_atomically(folder / name, content.getvalue())
    write_predictions(rows, folder / ROWS)


def write_predictions(rows: Sequence[_Row], output: Path) -> Path:
    """The file of all rows: of `.jsonl` a line an input, of `.csv` a line a prediction, with its rank from 1 on."""
    if output.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return write_atomically(output, text.encode())
    flat = []
    for row in rows:
        for rank, each in enumerate(row["predictions"], 1):
            own = {key: value for key, value in each.items() if key not in ("box", "mask")}
            start = {name: row[name] for name in ("file", "text") if name in row}
            flat.append({**start, "rank": rank, **own, **each.get("box", {})})
    columns = dict.fromkeys(name for row in flat for name in row)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(columns) or ["file", "rank", "label", "score"])
    writer.writeheader()
    writer.writerows(flat)
    return write_atomically(output, table.getvalue().encode())


__all__ = ["OUTPUTS", "as_json", "predict", "predict_to", "task_of", "threshold_of", "told", "write_predictions"]
