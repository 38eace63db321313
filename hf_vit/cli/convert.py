"""The verb `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import app, size
from hf_vit.files import check_model_source


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(help="A checkpoint of timm or transformers, or of ours: its id on the Hub, folder or file."),
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    to: Annotated[str | None, typer.Option(help="timm or transformers: write one of theirs instead of ours.")] = None,
    num_labels: Annotated[int | None, typer.Option(help="Classes of a new head.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: a side, or HEIGHTxWIDTH; positions follow.")] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels, likewise; kernels follow.")] = None,
    num_channels: Annotated[int | None, typer.Option(help="Of the images; kernels are summed or repeated.")] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take the weights that fit, others are new or left out.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
) -> None:
    """Write a model of timm or transformers as one of this package, or the other way round."""
    from hf_vit.conversion.convert import convert as convert_checkpoint
    from hf_vit.conversion.models import Changes

    check_model_source("source", source)
    changes = Changes(num_labels, size("image-size", image_size), size("patch-size", patch_size), num_channels)
    print(convert_checkpoint(source, folder, revision, to=to, changes=changes, allow_partial=allow_partial))
