"""Reads and amends what a run left in its folder. Nothing here interprets; see `facts`."""

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
AUTHOR_FILE = "card.yaml"
TEMPORARY = ".tmp-"  # begins the names of what is not written yet
AUTHOR_FIELDS = ("authors", "contact", "description", "intended_use", "out_of_scope_use", "limitations", "license")


@dataclass(frozen=True)
class Records:
    """The contents of the files a card is made from; those but `run` are empty when their file is absent.

    Null, NaN and infinite entries are left out. `author` holds what a person wrote, as Markdown: any of
    `AUTHOR_FIELDS`, from `card.yaml` and over it the run's arguments `card_FIELD`.
    """

    folder: Path
    run: dict
    config: dict
    preprocessor: dict
    author: dict[str, str]

    @classmethod
    def from_folder(cls, folder: Path) -> "Records":
        """Reads the folder of a run.

        Raises:
            ValueError: there is no `run.json`, it names no task, or a file is not what it should be.
        """
        if not (folder / RUN_FILE).is_file():
            raise ValueError(f"folder: {folder} holds no {RUN_FILE}; a card is written from a run's folder")
        run = _read_json(folder / RUN_FILE)
        if not isinstance(run.get("task"), str):
            raise ValueError(f"folder: {folder / RUN_FILE} does not name its task")
        others = [_read_json(folder / name) for name in (CONFIG_FILE, PREPROCESSOR_FILE)]
        return cls(folder, run, *others, read_author(folder))


def amend_run(folder: Path, key: str, value: dict) -> None:
    """Sets one key of `run.json` and leaves the others as they stand in the file."""
    run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    text = json.dumps({**run, key: value}, indent=1, ensure_ascii=False)
    # Rows of numbers on one line each; no string matches, for in JSON it holds no bare line break.
    text = re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda row: f"[{' '.join(row.group()[1:-1].split())}]", text)
    write_atomically(folder / RUN_FILE, (text + "\n").encode("utf-8"))


def write_atomically(path: Path, content: bytes) -> Path:
    """`path` holds either what it held before or `content`, whatever happens; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        sync(path.parent)
    return path


def sync(path: Path) -> None:
    """Puts a file or the list of a folder's files on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files that decide what the model in `folder` answers: weights, configurations and code."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.py"), *folder.glob("*config.json")]):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"folder: {path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"folder: {path} must hold a JSON object, found {type(content).__name__}")
    return _measured_only(content)


def _measured_only(value):
    if isinstance(value, dict):
        cleaned = {key: _measured_only(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    if isinstance(value, list):
        return [_measured_only(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_author(folder: Path) -> dict[str, str]:
    """What a person wrote for the card, by its field: see `Records`.

    Raises:
        ValueError: `run.json` or `card.yaml` is not what it should be.
    """
    arguments = _read_json(folder / RUN_FILE).get("arguments", {})
    if not isinstance(arguments, dict):
        found = type(arguments).__name__
        raise ValueError(f"folder: arguments in {folder / RUN_FILE} must be a JSON object, found {found}")
    typed = {name: str(arguments[f"card_{name}"]).strip() for name in AUTHOR_FIELDS if arguments.get(f"card_{name}")}
    return {**read_author_file(folder / AUTHOR_FILE), **typed}


def read_author_file(path: Path) -> dict[str, str]:
    """The fields of a `card.yaml`; none when there is no such file.

    Raises:
        ValueError: it is not YAML, or holds anything but texts under the names of `AUTHOR_FIELDS`.
    """
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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
