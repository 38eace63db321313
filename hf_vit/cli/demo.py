"""The verb `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import app, quiet_loading
from hf_vit.files import check_model_source


@app.command()
def demo(
    models: Annotated[list[str], typer.Argument(help="A model, or two of one task to compare: ids, or folders.")],
    host: Annotated[str, typer.Option(help="Where it is served; 127.0.0.1 is this computer alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="A free one.")] = 7860,
    inbrowser: Annotated[bool, typer.Option("--inbrowser", help="Open it in a browser.")] = False,
    space: Annotated[
        Path | None, typer.Option(help="Write a Hugging Face Space into this new folder instead of serving the page.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder or repository.")
    ] = False,
) -> None:
    """Show a page in the browser on which a model can be tried."""
    if space is not None:
        from hf_vit.demo.space import write_space

        print(write_space(models, space))
        return
    from hf_vit.demo.answers import load
    from hf_vit.demo.page import build, check_port, launch

    for model in models:
        check_model_source("model", model)
    check_port(host, port)
    quiet_loading()
    page = build([load(model, revision, trust_remote_code) for model in models])
    launch(page, host, port, opens_browser=inbrowser)
