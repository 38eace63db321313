"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import app
from hf_vit.files import check_model_source


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A Vision Transformer or translator of ours: its id, or folder.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    format: Annotated[str, typer.Option(help="onnx, torch_export, aoti or, of translators, ctranslate2.")],
    dtype: Annotated[
        str, typer.Option(help="float32, float16, bfloat16 or int8, as far as the format has it.")
    ] = "float32",
    dataset_name: Annotated[
        str | None, typer.Option(help="Images, or pairs of texts, on which to measure what the export loses.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data.")] = "test",
    max_eval_samples: Annotated[int | None, typer.Option(min=1, help="Take only so many of them.")] = None,
    source_lang: Annotated[str | None, typer.Option(help="Of pairs of texts: the column to translate.")] = None,
    target_lang: Annotated[str | None, typer.Option(help="And that of its translation.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
) -> None:
    """Write a model for onnxruntime, torch alone or CTranslate2, with a program that runs it without this package."""
    from hf_vit.export.export import export as export_model

    check_model_source("model", model)
    data = None
    if dataset_name is not None:
        given = {"max_eval_samples": max_eval_samples, "source_lang": source_lang, "target_lang": target_lang}
        data = {"dataset_name": dataset_name, "split": split}
        data |= {name: str(value) for name, value in given.items() if value is not None}
    print(export_model(model, folder, format, dtype, revision, data))
