"""The papers whose methods a run used, decided from its configuration and arguments by the rules of citations.yaml."""

import functools
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CITATIONS_FILE = "citations.yaml"  # the one here says what a condition may be; a task's folder may have its own
_SHARED = Path(__file__).with_name(CITATIONS_FILE)


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv; `method` is what a card names it for, `used` the alternatives that make a run use it."""

    method: str
    author: str
    year: int
    title: str
    arxiv: str
    used: list[dict[str, Any]]

    def is_used(self, values: Mapping[str, Any]) -> bool:
        """Whether a run uses the method.

        Args:
            values: fields of its configuration and its arguments, named `config.X` and `arguments.X`.

        Raises:
            ValueError: a condition is none of those there are.
        """
        return any(
            all(_holds(condition, values.get(name)) for name, condition in alternative.items())
            for alternative in self.used
        )

    @property
    def bibtex(self) -> str:
        word = next(word for word in self.title.split() if len(word) > 3)
        key = f"{self.author.split(',')[0]}{self.year}{word.strip(':,')}".lower()
        key = "".join(letter for letter in unicodedata.normalize("NFKD", key) if letter.isascii() and letter.isalnum())
        return "\n".join(
            [
                f"@misc{{{key},",
                "  title = {{" + self.title.replace("&", r"\&") + "}},",
                f"  author = {{{self.author} and others}},",
                f"  year = {{{self.year}}},",
                f"  eprint = {{{self.arxiv}}},",
                "  archivePrefix = {arXiv}",
                "}",
            ]
        )


def _holds(condition: Any, value: Any) -> bool:
    match condition:
        case list():
            return any(each in condition for each in (value if isinstance(value, list) else [value]))
        case {"not": list(values), **others} if not others:
            return not _holds(values, value)
        case "set":
            return bool(value)
        case "unset":
            return not value
        case {"above": limit, **others} if not others:
            return value is not None and value > limit
        case {"below": limit, **others} if not others:
            return value is not None and value < limit
    raise ValueError(f"a paper's condition must be a list, not, set, unset, above or below, found {condition!r}")


@functools.cache
def papers(path: Path = _SHARED) -> tuple[Paper, ...]:
    """The papers that a file lists, in its order; none if there is no such file."""
    if not path.is_file():
        return ()
    return tuple(Paper(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8")))


def of_methods(
    config: Mapping[str, Any], arguments: Mapping[str, Any], task_folder: Path | None = None
) -> list[Paper]:
    """The papers of exactly the methods that `config` and `arguments` say were used, those that a task lists last."""
    values = {f"config.{name}": value for name, value in config.items()}
    values.update({f"arguments.{name}": value for name, value in arguments.items()})
    listed = papers() + (papers(task_folder / CITATIONS_FILE) if task_folder else ())
    return [paper for paper in listed if paper.is_used(values)]
