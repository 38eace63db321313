"""Verbs of training: `train`, `score` and `study`, which read their words themselves."""

from __future__ import annotations

import sys
from typing import Any

import typer

from hf_vit.cli.app import app
from hf_vit.extras import extra

# Of commands that read their words themselves, `--help` too.
_WHOLE: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _words(context: typer.Context) -> list[str]:
    """The words after the command, which is the program's name in help and errors."""
    sys.argv = [context.command_path, *context.args]
    return context.args


@app.command(context_settings=_WHOLE)
def train(context: typer.Context) -> None:
    """Train a model by a recipe, in one process or, as Accelerate's launcher is told, in many."""
    from hf_vit.train import launch

    launch(_words(context))


@app.command(context_settings=_WHOLE)
def score(context: typer.Context) -> None:
    """Score a saved or published model on a data set."""
    with extra("train"):
        from hf_vit.score import main

    main(_words(context))


@app.command(context_settings=_WHOLE)
def study(context: typer.Context) -> None:
    """Compare variants of a recipe over several seeds."""
    with extra("train"):
        from hf_vit.study import main

    main(_words(context))
