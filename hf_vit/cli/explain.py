"""The verb `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import app, quiet_loading
from hf_vit.files import check_model_source, write_atomically


@app.command()
def explain(
    model: Annotated[
        str,
        typer.Argument(help="A Vision Transformer that classifies, or a translator: its id on the Hub, or folder."),
    ],
    source: Annotated[str, typer.Argument(metavar="IMAGE", help="A file, or an address; of a translator a text.")],
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="A further class to explain, by name or index; several may be given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A new .png; explanation.png in the current folder if not given.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder or repository.")
    ] = False,
) -> None:
    """Show why a model answers as it does: heat maps over an image for the predicted class and others, attention,
    features, and curves that prove the maps; of a translator, what it read for each token that it wrote."""
    from hf_vit.inputs import check_output
    from hf_vit.predict import task_of

    check_model_source("model", model)
    output = Path("explanation.png") if output is None else output
    check_output(output, [".png"], overwrite)
    quiet_loading()
    task = task_of(model, revision, trust_remote_code)
    if task == "translation":
        picture = _of_text(model, source, class_name or [], revision)
    elif task != "image-classification":
        raise ValueError(f"model must classify images or translate texts, {model!r} is for {task}")
    else:
        picture = _of_image(model, source, class_name or [], revision, trust_remote_code)
    print(write_atomically(output, picture))


def _of_image(model: str, source: str, class_names: list[str], revision: str | None, trust_remote_code: bool) -> bytes:
    """The picture of an explained image; prints what its maps add up to."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_vit.explain import explain_image
    from hf_vit.explain.picture import draw_explanation
    from hf_vit.inputs import find_images, opened

    (name, *others) = find_images([source])
    if others or not (Path(source).is_file() or source.startswith(("http://", "https://"))):
        raise ValueError(f"image must be one file or address, {source!r} is several")
    try:
        image = opened(name)
    except OSError as error:
        raise ValueError(f"image {source!r} cannot be read: {error}") from None
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


def _of_text(model: str, text: str, class_names: list[str], revision: str | None) -> bytes:
    """The picture of a translation's alignment; prints the translation."""
    from hf_vit.explain import alignment
    from hf_vit.explain.picture import draw_alignment
    from hf_vit.translate import load_translator

    if class_names:
        raise ValueError(f"--class is for models that classify images, {model!r} translates")
    translator = load_translator(model, revision)
    translation = translator(text)[0]["translation_text"]
    found = alignment(translator.model, translator.tokenizer, text, translation, translator.target_tokenizer)
    print(translation)
    return draw_alignment(found)
