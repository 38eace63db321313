"""The verb `translate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_vit.cli.app import app
from hf_vit.files import check_model_source


@app.command()
def translate(
    model: Annotated[str, typer.Argument(help="A translation model: its id on the Hub, or its folder.")],
    text: Annotated[str | None, typer.Argument(help="What to translate; each line of standard input if none.")] = None,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beams of the search; the model's own by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
) -> None:
    """Translate a text, or every line of standard input as it comes. Runs no code of the model's repository."""
    from transformers.utils.logging import disable_progress_bar

    from hf_vit.inputs import lines
    from hf_vit.translate import load_translator, print_translations

    check_model_source("model", model)
    options = {} if num_beams is None else {"num_beams": num_beams}
    disable_progress_bar()  # of loading: the terminal is the translation's
    print_translations(load_translator(model, revision), lines() if text is None else [text], **options)
