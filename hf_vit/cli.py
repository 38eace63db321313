"""The `hf-vit` command: train, score, publish, fetch, convert and examine models. Names are those of the `hf` command.

Commands load what they need when they run: the help is quick, and what an extra brings is asked for where it is used.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from hf_vit.extras import MissingExtraError, extra

try:
    with extra("hub"):
        import typer
except MissingExtraError as error:
    sys.exit(f"hf-vit: error: {error}")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --num_beams as --num-beams
)
_UsageError: Any = typer.BadParameter.__base__  # of click, which is a part of typer in newer versions alone

Folder = Annotated[Path, typer.Argument(help="The folder of a model, for instance the output_dir of a run.")]
RepoId = Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub, or NAME alone for one's own.")]
Token = Annotated[str | None, typer.Option(help="A token of the Hub; that of `hf auth login` or HF_TOKEN by default.")]

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


@app.command()
def push(
    repo_id: RepoId,
    folder: Folder,
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    tag: Annotated[str | None, typer.Option(help="A new tag for the commit.")] = None,
    collection: Annotated[str | None, typer.Option(help="The title of a collection to put the model into.")] = None,
    commit_message: Annotated[str, typer.Option(help="The first line of the commit.")] = "Upload model",
    token: Token = None,
) -> None:
    """Check a model's folder, publish it in one commit, and check what arrived. Runs the code in the folder."""
    with extra("hub"):
        from hf_vit import hub

    destination = hub.Destination(repo_id, private, revision, create_pr, tag, collection, token)
    commit = hub.push(folder, destination, commit_message=commit_message)
    print(f"{commit.pr_url or commit.commit_url}\nLoaded back from the Hub, its outputs are the same.")


@app.command()
def pull(
    repo_id: RepoId,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    local_dir: Annotated[
        Path | None,
        typer.Option(help="Where to: a folder that is new, empty or of an earlier pull; the Hub's cache by default."),
    ] = None,
    token: Token = None,
) -> None:
    """Download a model's repository and print its folder. Runs nothing of it."""
    with extra("hub"):
        from hf_vit import hub

    print(hub.pull(repo_id, revision=revision, local_dir=local_dir, token=token))


@app.command()
def doctor(
    folder: Folder,
    load: Annotated[bool, typer.Option(help="Load it too, without this package, running the code in it.")] = True,
    refresh_code: Annotated[
        bool, typer.Option("--refresh-code", help="First put this package's code in the place of the folder's own.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Say instead which fast paths its model takes here on a CPU, and why not.")
    ] = False,
) -> None:
    """Say what keeps a folder from being published. Exits with 1 if anything does."""
    if speed:
        from hf_vit.fast_paths import describe_machine, fast_paths

        print(describe_machine(), *fast_paths(folder), sep="\n")
        return
    with extra("hub"):
        from hf_vit.hub.doctor import examine
        from hf_vit.hub.staging import refresh_with_card, staged
        from hf_vit.isolated.fresh_process import fresh_process

    if refresh_code:
        changed = refresh_with_card(folder)
        print(f"replaced: {', '.join(changed)}" if changed else "the code is this package's already")
    with staged(folder) as stage:
        problems = examine(stage)
        if load and not problems:
            with fresh_process() as process:
                try:
                    print("loaded by", ", ".join(process.load(stage).classes))
                except RuntimeError as error:
                    problems = [f"it does not load without this package: {error}"]
    _report(problems, f"{folder} can be published")


@app.command()
def card(
    folder: Folder,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if it is not so.")] = False,
) -> None:
    """Write the model card from the folder's records. Runs the code in the folder, unless it only checks."""
    with extra("hub"):
        from hf_vit.cards.card import check_card, write_card

    if check:
        _report(check_card(folder), "the card says what the records say")
    else:
        print(write_card(folder))


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

    _check_source(source)
    changes = Changes(num_labels, _size("image-size", image_size), _size("patch-size", patch_size), num_channels)
    print(convert_checkpoint(source, folder, revision, to=to, changes=changes, allow_partial=allow_partial))


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

    _check_source(model)
    data = None
    if dataset_name is not None:
        data = {"dataset_name": dataset_name, "split": split}
        data |= {} if max_eval_samples is None else {"max_eval_samples": str(max_eval_samples)}
    print(export_model(model, folder, format, dtype, revision, data))


def _size(name: str, text: str | None) -> tuple[int, int] | None:
    """(height, width) of `HEIGHTxWIDTH`, or of one side."""
    if text is None:
        return None
    sides = text.split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2 or not min(map(int, sides)):
        raise ValueError(f"--{name} must be a number of pixels or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])


@app.command()
def cost(
    model: Annotated[
        str,
        typer.Argument(help="A Vision Transformer of ours: its folder, id, or a variant, as vit_small_patch16_224."),
    ],
    image_size: Annotated[
        str | None, typer.Option(help="Pixels: a side, or HEIGHTxWIDTH; the model's own if not.")
    ] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels, likewise.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images.")] = 1,
    memory: Annotated[str | None, typer.Option(help="What there is, for instance 24GiB: say what fits.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Of a training step, not of inference.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")] = "float32",
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    attn_implementation: Annotated[str, typer.Option(help="eager or sdpa.")] = "sdpa",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute each layer again in the backward pass.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd_momentum or sgd.")] = "adamw",
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, memory in bytes.")] = False,
) -> None:
    """Say what a Vision Transformer costs: parameters, FLOPs and memory, and what fits. Runs no code of the model."""
    from hf_vit.cost import Setup, as_text, forecast, memory_bytes, vit_config

    _check_source(model)
    limit = None if memory is None else memory_bytes(memory)
    setup = Setup(batch_size, training, dtype, mixed_precision, attn_implementation, gradient_checkpointing, optimizer)
    sizes = {"image_size": _size("image-size", image_size), "patch_size": _size("patch-size", patch_size)}
    config = vit_config(model, revision, **{name: size for name, size in sizes.items() if size is not None})
    result = forecast(config, setup, limit)
    print(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))


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

    from hf_vit.translate import load_translator, print_translations

    _check_source(model)
    options = {} if num_beams is None else {"num_beams": num_beams}
    disable_progress_bar()  # of loading: the terminal is the translation's
    print_translations(load_translator(model, revision), _lines() if text is None else [text], **options)


def _lines() -> Iterator[str]:
    """Lines of standard input as they come, in UTF-8 whatever the locale is."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    for line in sys.stdin:
        yield line.rstrip("\n")


def _check_source(source: str) -> None:
    # transformers takes what is no folder for an id on the Hub, and says so at length.
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if is_path and not Path(source).exists():
        raise ValueError(f"there is no folder {source!r}")


def _report(problems: list[str], all_well: str) -> None:
    print("\n".join(problems) or all_well)
    raise typer.Exit(1 if problems else 0)


def main() -> None:
    """Runs a command line. Errors are one line, `hf-vit COMMAND: error: ...`; the status of a wrong word is 2, of
    anything else that failed 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    words = sys.argv[1:] or ["--help"]
    program = " ".join(["hf-vit", *words[:1]])
    try:
        sys.exit(app(words, standalone_mode=False))
    except _UsageError as error:
        print(f"{error.ctx.command_path if error.ctx else program}: error: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(f"{program}: interrupted")
    except Exception as error:
        if not _is_told(error):
            raise
        sys.exit(f"{program}: error: {error}")


def _is_told(error: Exception) -> bool:
    """Whether an error's message says all that helps; another's traceback is wanted."""
    if isinstance(error, (ValueError, OSError, MissingExtraError)):
        return True
    hub = sys.modules.get("hf_vit.hub")
    return hub is not None and isinstance(error, hub.HubError)


if __name__ == "__main__":
    main()
