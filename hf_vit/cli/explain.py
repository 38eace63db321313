"""The verb `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_vit.cli.app import app, quiet_loading
from hf_vit.files import check_model_source, write_atomically

if TYPE_CHECKING:
    from PIL import Image

_DETECTS = ("object-detection", "image-segmentation")


@app.command()
def explain(
    model: Annotated[
        str,
        typer.Argument(
            help="A Vision Transformer that classifies, a detector, a translator or a reader: its id, or folder."
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="IMAGE", help="A file, or an address; of a translator a text.")],
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="A further class of a classifier, by name or index; several may be given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A new .png; explanation.png in the current folder if not given.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of a detector: the least score, between 0 and 1, of objects to explain.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder or repository.")
    ] = False,
) -> None:
    """Show why a model answers as it does: heat maps over an image for the predicted class and others, attention,
    features, and curves that prove the maps; where a detector looked for each object; what a translator or a reader of
    images read for each token that it wrote."""
    from hf_vit.inputs import check_output
    from hf_vit.predict import task_of

    check_model_source("model", model)
    output = Path("explanation.png") if output is None else output
    check_output(output, [".png"], overwrite)
    quiet_loading()
    task = task_of(model, revision, trust_remote_code)
    if class_name and task != "image-classification":
        raise ValueError(f"--class is for models that classify images, {model!r} is for {task}")
    if threshold is not None and task not in _DETECTS:
        raise ValueError(f"--threshold is for models that find objects, {model!r} is for {task}")
    if task == "translation":
        picture = _of_text(model, source, revision)
    elif task == "image-to-text":
        picture = _of_reading(model, source, revision)
    elif task in _DETECTS:
        picture = _of_objects(model, source, threshold, revision, trust_remote_code)
    else:
        picture = _of_image(model, source, class_name or [], revision, trust_remote_code)
    print(write_atomically(output, picture))


def _opened(source: str) -> Image.Image:
    """The image of a file or an address."""
    from hf_vit.inputs import find_images, opened

    (name, *others) = find_images([source])
    if others or not (Path(source).is_file() or source.startswith(("http://", "https://"))):
        raise ValueError(f"image must be one file or address, {source!r} is several")
    try:
        return opened(name)
    except OSError as error:
        raise ValueError(f"image {source!r} cannot be read: {error}") from None


def _of_image(model: str, source: str, class_names: list[str], revision: str | None, trust_remote_code: bool) -> bytes:
    """The picture of an explained image; prints what its maps add up to."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_vit.explain import explain_image
    from hf_vit.explain.picture import draw_explanation

    image = _opened(source)
    loaded = AutoModelForImageClassification.from_pretrained(
        model, revision=revision, trust_remote_code=trust_remote_code
    )
    processor = AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    explanation = explain_image(loaded, processor, image, class_names)
    for each in explanation.classes:
        if each.tokens is None or each.bias is None:
            parts = "gradient-weighted attention"
        else:
            patches = float(each.heat_map.sum())
            parts = f"patches {patches:+.3f}, tokens {each.tokens:+.3f}, bias {each.bias:+.3f}, "
            parts += f"logit {each.logit:+.3f}"
        print(f"{each.label} {each.score:.3f}: {parts}")
        areas = [
            f"{curve} {float(getattr(each.curves, f'{curve}_area')):.3f} "
            f"({float(getattr(each.chance, f'{curve}_area')):.3f} by chance)"
            for curve in ("deletion", "insertion")
        ]
        print(f"  area under the curves: {', '.join(areas)}")
    return draw_explanation(explanation)


def _of_objects(
    model: str, source: str, threshold: float | None, revision: str | None, trust_remote_code: bool
) -> bytes:
    """The picture of where a detector looked for each object; prints the objects."""
    from transformers import pipeline

    from hf_vit.explain.objects import explain_objects
    from hf_vit.explain.picture import draw_found
    from hf_vit.predict import task_of, threshold_of

    image = _opened(source)
    task: Any = task_of(model, revision, trust_remote_code)
    pipe: Any = pipeline(task, model=model, revision=revision, trust_remote_code=trust_remote_code)
    least = threshold_of(model) if threshold is None else threshold
    explanation = explain_objects(pipe.model, pipe.image_processor, image, least)
    if not explanation.objects:
        raise ValueError(f"image {source!r} shows no object that scores {least:.3g}: give a lower --threshold")
    for each in explanation.objects:
        inside = each.share_inside
        print(f"{each.label} {each.score:.3f}: {inside:.0%} of what it looked at lies in its box")
    return draw_found(explanation)


def _of_reading(model: str, source: str, revision: str | None) -> bytes:
    """The picture of where a model that writes texts looked for each token; prints the text."""
    from hf_vit.explain.picture import draw_reading
    from hf_vit.explain.reading import read_image
    from hf_vit.read import load_reader

    reading = read_image(load_reader(model, revision), _opened(source))
    print(reading.text)
    return draw_reading(reading)


def _of_text(model: str, text: str, revision: str | None) -> bytes:
    """The picture of a translation's alignment; prints the translation."""
    from hf_vit.explain import alignment
    from hf_vit.explain.picture import draw_alignment
    from hf_vit.translate import load_translator

    translator = load_translator(model, revision)
    translation = translator(text)[0]["translation_text"]
    found = alignment(translator.model, translator.tokenizer, text, translation, translator.target_tokenizer)
    print(translation)
    return draw_alignment(found)
