"""What of a folder goes to the Hub: links to its files, and records and card made fit to be read by others."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_vit.cards import write_card
from hf_vit.cards.card import facts_of
from hf_vit.cards.format import local
from hf_vit.cards.records import amend_run
from hf_vit.files import write_atomically
from hf_vit.hub.doctor import published_files
from hf_vit.record import RUN_FILE, read_record


@contextmanager
def staged(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder of links to what is published of `folder`, with a `run.json` that tells no paths.

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
        yield stage


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
