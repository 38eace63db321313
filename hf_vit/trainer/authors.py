"""Words of a model's author on its card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_vit.cards.records import AUTHOR_FILE, read_author_file
from hf_vit.config import argument


@dataclass
class AuthorArguments:
    """The card reads these from the run's records; a file `RECIPE.card.yaml` beside the recipe may hold them too."""

    _argument_group_name: ClassVar[str] = "Model card"

    card_description: str | None = argument(None, help="What the model is, in a few sentences (Markdown).")
    card_intended_use: str | None = argument(None, help="What it is meant for.")
    card_out_of_scope_use: str | None = argument(None, help="What it must not be used for.")
    card_limitations: str | None = argument(None, help="What it cannot do.")
    card_authors: str | None = argument(None, help="Who made it.")
    card_contact: str | None = argument(None, help="Where to ask.")
    card_license: str | None = argument(None, help="Licence of the weights, by its identifier on the Hub.")


def author_file(recipe: Path, output_dir: Path) -> Path | None:
    """The author's file of `output_dir`, or else that beside the recipe; None if there is none.

    Raises:
        ValueError: it is not YAML, or holds anything but texts under the card's fields.
    """
    paths = (output_dir / AUTHOR_FILE, recipe.with_suffix(".card.yaml"))
    path = next((path for path in paths if path.is_file()), None)
    if path is not None:
        read_author_file(path)
    return path


def copy_author_file(recipe: Path, output_dir: Path, folder: Path) -> None:
    """Puts the author's file into `folder` if there is one."""
    if (path := author_file(recipe, output_dir)) is not None:
        shutil.copyfile(path, folder / AUTHOR_FILE)
