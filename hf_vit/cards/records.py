"""Reads and amends what a run left in its folder. Nothing here interprets; see `facts`."""

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from hf_vit.files import read_object, read_utf8, write_atomically
from hf_vit.record import RUN_FILE, Record, read_record, read_run, record_from

CONFIG_FILE = "config.json"
AUTHOR_FILE = "card.yaml"
AUTHOR_FIELDS = ("authors", "contact", "description", "intended_use", "out_of_scope_use", "limitations", "license")


AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class Records(Generic[AnyRecord]):
    """The contents of the files a card is made from.

    `config` is that of the model and `arguments` those of the run, without what is null or not finite; `config` is
    empty when there is no such file. `author` holds what a person wrote, as Markdown: any of `AUTHOR_FIELDS`, from
    `card.yaml` and over it the run's arguments `card_FIELD`.
    """

    folder: Path
    run: AnyRecord
    arguments: dict[str, Any]
    config: dict[str, Any]
    author: dict[str, str]

    @classmethod
    def from_folder(cls, folder: Path) -> "Records":
        """Reads the folder of a run.

        Raises:
            ValueError: there is no `run.json`, it names no task, or a file is not what it should be.
        """
        run: Any = read_record(folder)  # of the class that its task has
        path = folder / CONFIG_FILE
        config = _measured_only(read_object(path)) if path.is_file() else {}
        return cls(folder, run, _measured_only(run.arguments), config, read_author(folder))


def amend_run(folder: Path, key: str, value: dict) -> None:
    """Sets one key of `run.json` and leaves the others as they stand in the file.

    Raises:
        ValueError: the record would not be what a run writes.
    """
    run = read_run(folder)
    record_from({**run, key: value})
    text = json.dumps({**run, key: value}, indent=1, ensure_ascii=False)
    # Rows of numbers on one line each; no string matches, for in JSON it holds no bare line break.
    text = re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda row: f"[{' '.join(row.group()[1:-1].split())}]", text)
    write_atomically(folder / RUN_FILE, (text + "\n").encode("utf-8"))


def _measured_only(value: Any) -> Any:
    if isinstance(value, dict):
        cleaned = {key: _measured_only(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    if isinstance(value, list):
        return [_measured_only(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_author(folder: Path) -> dict[str, str]:
    """Words that a person wrote for the card, by its field: see `Records`.

    Raises:
        ValueError: `run.json` or `card.yaml` is not what it should be.
    """
    arguments = read_run(folder).get("arguments", {}) if (folder / RUN_FILE).is_file() else {}
    if not isinstance(arguments, dict):
        found = type(arguments).__name__
        raise ValueError(f"folder: arguments in {folder / RUN_FILE} must be a JSON object, found {found}")
    typed = {name: str(arguments[f"card_{name}"]).strip() for name in AUTHOR_FIELDS if arguments.get(f"card_{name}")}
    return {**read_author_file(folder / AUTHOR_FILE), **typed}


def read_author_file(path: Path) -> dict[str, str]:
    """The fields of a `card.yaml`; none when there is no such file.

    Raises:
        ValueError: it is not UTF-8 or not YAML, or holds anything but texts under the names of `AUTHOR_FIELDS`.
    """
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(read_utf8(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold `name: text` lines, found {type(content).__name__}")
    for name, value in content.items():
        if name not in AUTHOR_FIELDS:
            near = difflib.get_close_matches(str(name), AUTHOR_FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(AUTHOR_FIELDS)}"
            raise ValueError(f"{path.name}: unknown field {name!r}; {hint}")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path.name}: {name} must be text, found {value!r}")
    return {name: value.strip() for name, value in content.items()}
