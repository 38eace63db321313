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
        str | None, typer.Option(help="Images on which to measure a classifier's accuracy.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the images.")] = "test",
    max_eval_samples: Annotated[int | None, typer.Option(min=1, help="Take only so many of them.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
) -> None:
    """Write a model for onnxruntime, torch alone or CTranslate2, with a program that runs it without this package."""
    from hf_vit.export.export import export as export_model

    check_model_source("model", model)
    data = None
    if dataset_name is not None:
        data = {"dataset_name": dataset_name, "split": split}
        data |= {} if max_eval_samples is None else {"max_eval_samples": str(max_eval_samples)}
    print(export_model(model, folder, format, dtype, revision, data))
