"""The application that the verbs add themselves to, what several of them share, and the program around it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from hf_vit.errors import DEBUG_HELP, told
from hf_vit.extras import extra

with extra("hub"):
    import typer

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --num_beams as --num-beams
    help="Train models, use them, explain, publish, convert and examine them. `hf-vit VERB --help` says what a verb "
    f"takes; options may be written with - or _. {DEBUG_HELP}",
)
_UsageError: Any = typer.BadParameter.__base__  # of click, which is a part of typer in newer versions alone

Folder = Annotated[Path, typer.Argument(help="The folder of a model, for instance the output_dir of a run.")]
RepoId = Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub, or NAME alone for one's own.")]
Token = Annotated[str | None, typer.Option(help="A token of the Hub; that of `hf auth login` or HF_TOKEN by default.")]


def report(problems: list[str], all_well: str) -> NoReturn:
    """Prints the problems, or that there are none; exits with 1 if there are any."""
    print("\n".join(problems) or all_well)
    raise typer.Exit(1 if problems else 0)


def size(name: str, text: str | None) -> tuple[int, int] | None:
    """(height, width) of `HEIGHTxWIDTH`, or of one side."""
    if text is None:
        return None
    sides = text.split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2 or not min(map(int, sides)):
        raise ValueError(f"--{name} must be a number of pixels or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])


def quiet_loading() -> None:
    """Leaves the terminal to the verb: no progress bars of loading, no reports of models with code of their own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)


def main() -> None:
    """Runs a command line. Errors are one line, `hf-vit COMMAND: error: ...`, and status 2, also of a wrong word."""
    with told():
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        words = sys.argv[1:] or ["--help"]
        sys.argv[0] = " ".join(["hf-vit", *words[:1]])  # the program that errors are told by
        try:
            sys.exit(app(words, prog_name="hf-vit", standalone_mode=False))
        except _UsageError as error:
            sys.argv[0] = error.ctx.command_path if error.ctx else sys.argv[0]
            raise ValueError(error.format_message()) from None
        except typer.Abort:  # click's for an interruption
            raise KeyboardInterrupt from None
