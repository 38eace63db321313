"""Reads and amends what a run left in its folder. Nothing here interprets; see `facts`."""

import difflib
import hashlib
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
AUTHOR_FILE = "card.yaml"
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
        arguments = run.get("arguments", {})
        typed = {name: arguments[f"card_{name}"].strip() for name in AUTHOR_FIELDS if arguments.get(f"card_{name}")}
        return cls(folder, run, *others, {**_read_author(folder / AUTHOR_FILE), **typed})


def amend_run(folder: Path, key: str, value: dict) -> None:
    """Sets one key of `run.json` and leaves the others as they stand in the file."""
    run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    text = json.dumps({**run, key: value}, indent=1, ensure_ascii=False)
    # Rows of numbers on one line each; no string matches, for in JSON it holds no bare line break.
    text = re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda row: f"[{' '.join(row.group()[1:-1].split())}]", text)
    replace_file(folder / RUN_FILE, (text + "\n").encode("utf-8"))


def replace_file(path: Path, content: bytes) -> Path:
    """Writes a file in one step: until the new content is safely on disk, the old one stays whole."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are private; a card is not
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path


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


def _read_author(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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
