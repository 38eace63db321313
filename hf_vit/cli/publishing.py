"""Verbs of publishing: `push`, `pull`, `doctor` and `card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import Folder, RepoId, Token, app, report
from hf_vit.extras import extra


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
        problems = examine(stage, folder)
        if load and not problems:
            with fresh_process() as process:
                try:
                    print("loaded by", ", ".join(process.load(stage).classes))
                except RuntimeError as error:
                    problems = [f"it does not load without this package: {error}"]
    report(problems, f"{folder} can be published")


@app.command()
def card(
    folder: Folder,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if it is not so.")] = False,
) -> None:
    """Write the model card from the folder's records. Runs the code in the folder, unless it only checks."""
    with extra("hub"):
        from hf_vit.cards.card import check_card, write_card

    if check:
        report(check_card(folder), "the card says what the records say")
    else:
        print(write_card(folder))
