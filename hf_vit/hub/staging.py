"""Files of a folder that go to the Hub: links to its files, and records and card made fit to be read by others."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import CONFIG_NAME

from hf_vit.cards import write_card
from hf_vit.cards.card import facts_of
from hf_vit.cards.format import local
from hf_vit.cards.records import amend_run
from hf_vit.files import write_atomically
from hf_vit.hub.doctor import published_files
from hf_vit.hub.own_code import is_older, refresh_code
from hf_vit.models.code_version import code_digest
from hf_vit.record import RUN_FILE, read_record


@contextmanager
def staged(folder: str | os.PathLike, *, refresh: bool = False) -> Iterator[Path]:
    """A folder of links to what is published of `folder`, with a `run.json` that tells no paths.

    Args:
        refresh: put this package's code there if the folder's own is older, and write the card anew, which executes
            that code.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {str(folder)!r}")
    with tempfile.TemporaryDirectory() as directory:
        stage = Path(directory, folder.resolve().name)
        for name in published_files(folder):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.symlink((folder / name).resolve(), stage / name)
            except OSError:  # not everyone may make links on Windows
                shutil.copy2(folder / name, stage / name)
        stage.mkdir(exist_ok=True)
        _cut_paths(stage)
        if refresh and is_older(stage):
            refresh_with_card(stage)
        _note_edited_code(stage / CONFIG_NAME)
        yield stage


def refresh_with_card(folder: Path) -> list[str]:
    """`refresh_code`, and the card anew if there is one from records: its snippets ran with the code before. That may
    execute the new code, see `write_card`."""
    changed = refresh_code(folder)
    if changed and (folder / RUN_FILE).is_file():
        write_card(folder)
    return changed


def _note_edited_code(path: Path) -> None:
    """Write into a configuration which code lies beside it, if it says another: by that those who have this package
    are told that the folder's own differs."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        module = config["auto_map"]["AutoConfig"].partition(".")[0]
        digest = code_digest(path.with_name(f"{module}.py")) if config.get("code_digest") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # `examine` says so
    if digest is not None and digest != config["code_digest"]:
        content = json.dumps({**config, "code_digest": digest}, indent=2, sort_keys=True) + "\n"
        write_atomically(path, content.encode("utf-8"))


def _cut_paths(folder: Path) -> None:
    """Cuts the absolute paths that a run's record holds of its arguments, as its card does."""
    try:
        record = read_record(folder)
    except ValueError:
        return  # there is none, or `examine` says what is wrong with it
    authors = {name: value for name, value in record.arguments.items() if name.startswith("card_")}
    content = record.with_paths(local)
    if authors:
        content["arguments"].update(authors)  # shown on the card as they are
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / RUN_FILE, text.encode("utf-8"))


def name_in_card(stage: Path, repo_id: str) -> None:
    """Writes the card anew if its snippets name another repository than the one it goes to."""
    if (stage / RUN_FILE).is_file() and facts_of(stage).repo_id != repo_id:
        write_card_for(stage, repo_id)


def write_card_for(folder: Path, repo_id: str) -> None:
    """Records where a run's model goes, and writes its card. May execute the code in the folder, see `write_card`."""
    arguments = read_record(folder).arguments
    amend_run(folder, "arguments", {**arguments, "hub_model_id": repo_id})
    write_card(folder)
