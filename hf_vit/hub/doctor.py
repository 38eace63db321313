"""Faults that keep a model's folder from being published, found without running anything in it."""

import ast
import functools
import json
import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from huggingface_hub import ModelCard, get_token
from huggingface_hub.utils import filter_repo_objects
from kingfisher_sdk import Scanner
from picklescan.scanner import scan_file_path
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_vit.cards import check_card
from hf_vit.cards.records import read_author
from hf_vit.models.tested_versions import fault_of_code
from hf_vit.record import PREDICTIONS_FILE
from hf_vit.words import printable

logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # it warns of every file that is no pickle

CARD_FILE = "README.md"
LAST_CHECKPOINT = "last-checkpoint"  # a run's state, for resuming it; transformers' Trainer has it under this name
NOT_PUBLISHED = (".*", "*/.*", "*__pycache__*", "checkpoints/*", "checkpoint-*/*", "logs/*", PREDICTIONS_FILE)

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # hold any text there is
_INPUT_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")
_ADDRESSES = re.compile(r"\b(?!git@)[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# A path starts a word or follows a quote, a bracket, an equals sign or a comma; the slashes of a URL do not.
_PATHS = re.compile(
    r"""(?<![^\s"'`=,(\[])(?:(?!/(?:dev|proc|sys|etc|usr|bin)/)(?:/[\w.@+-]+){2,}|[A-Za-z]:(?:\\{1,2}[\w. -]+){2,})"""
)
# What the scanner asks more of: the id of an AWS key without the key, the head of a private key without its body.
_KEYS = re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_CARD_IMAGES = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


def published_files(folder: str | os.PathLike, origin: str | os.PathLike | None = None) -> list[str]:
    """The files of `folder` that belong into a model repository, as sorted POSIX paths relative to it.

    Left out are hidden files, the checkpoints and tracking logs of a run (whose names tell the host), what it
    predicted of each sample (which may name files), and links that lead out of the folder.

    Args:
        origin: the folder that links may lead into, `folder` itself when None.
    """
    folder, origin = Path(folder), Path(origin or folder)
    return [name for name in _published(folder) if (folder / name).is_file() and not _leads_out(folder / name, origin)]


def _published(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(filter_repo_objects(names, ignore_patterns=list(NOT_PUBLISHED)))


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is a link to something that is not in a folder. A snapshot in the Hub's cache is made of links to
    the blobs beside it, which are its own."""
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parent.with_name("blobs").is_dir():
        home = home.parent.parent
    return path.is_symlink() and not path.resolve().is_relative_to(home)


def examine(folder: str | os.PathLike, origin: str | os.PathLike | None = None) -> list[str]:
    """Everything that is missing or wrong in a folder, each in one sentence; empty when it can be published.

    Looks at names and links, weights, configuration and `auto_map`, code, processor, model card and its records,
    pickles, and at what should stay private: absolute paths, tokens, e-mail addresses (other than those in the
    author's words on the card).

    Args:
        origin: the folder that `folder` is the stage of, whose names and links are looked at in its place.

    Raises:
        ValueError: there is no such folder.
    """
    folder, origin = Path(folder), Path(origin or folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {str(folder)!r}")
    files = published_files(folder, origin)
    config, problems = _read_config(folder)
    problems += _names(origin)
    for check in (_weights, _auto_map, _code, _inputs, _card, _pickles, _private):
        problems += check(folder, files, config)
    return [printable(problem) for problem in problems]


def _read_config(folder: Path) -> tuple[dict, list[str]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("model_type"), str):
            return config, []
    except FileNotFoundError:
        return {}, ["config.json is missing: save the model with save_pretrained"]
    except ValueError as error:
        return {}, [f"config.json is not valid JSON: {error}"]
    return {}, ["config.json names no model_type: save the model with save_pretrained"]


def _names(folder: Path) -> Iterator[str]:
    for name in _published(folder):
        if _leads_out(folder / name, folder):
            yield f"{name} is a link that leads out of the folder: put a copy in its place, or remove it"
        if printable(name) != name:
            yield f"{name} has a control character in its name: rename it"


def _weights(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    weights = {name for name in files if name.endswith(".safetensors") and "/" not in name}
    if not weights:
        yield "there are no weights (*.safetensors): save the model with save_pretrained"
    for name in sorted(weights):
        try:
            with safe_open(folder / name, "pt") as file:
                file.keys()
        except Exception as error:  # safetensors has an exception of its own in Rust, beside OSError
            yield f"{name} cannot be read: {error}"
    for name in files:
        if name.endswith(".safetensors.index.json"):
            try:
                named = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                yield f"{name} holds no weight_map of files: {error!r}"
                continue
            for missing in sorted(named - weights):
                yield f"{missing} is missing, which {name} names"


def _auto_map(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    model_type, auto_map = config.get("model_type"), config.get("auto_map", {})
    pipelines = config.get("custom_pipelines", {})
    if not isinstance(auto_map, dict) or not isinstance(pipelines, dict):
        yield "config.json: auto_map and custom_pipelines must be JSON objects: save the model again"
        return
    if model_type in CONFIG_MAPPING_NAMES and not auto_map:
        for name, part in config.items():
            part_type = part.get("model_type") if isinstance(part, dict) else None
            if part_type is not None and part_type not in CONFIG_MAPPING_NAMES:
                yield (
                    f"config.json: {name} is a {part_type!r} model, whose code a {model_type!r} folder does not hold: "
                    "transformers loads it only where the package of that model is imported"
                )
    if model_type is None or (model_type in CONFIG_MAPPING_NAMES and not auto_map):
        return
    try:
        expected = getattr(AutoConfig.for_model(model_type), "auto_map", {})
    except ValueError:  # not a model of this package
        expected = {"AutoConfig": None}
    for name in expected:
        if name not in auto_map:
            yield f"config.json: auto_map lacks {name}, so {name}.from_pretrained fails: save the model again"
    references = {f"auto_map[{name!r}]": reference for name, reference in auto_map.items()}
    for task, pipeline in pipelines.items():
        references[f"custom_pipelines[{task!r}]"] = pipeline.get("impl") if isinstance(pipeline, dict) else pipeline
    for where, reference in references.items():
        if not isinstance(reference, str):
            yield f"config.json: {where} must be 'module.Class', found {reference!r}"
            continue
        module, _, class_name = reference.rpartition(".")
        if "--" in reference:
            yield f"config.json: {where} points to code in another repository, {reference!r}"
        elif f"{module}.py" not in files:
            yield f"{module}.py is missing, which {where} of config.json names"
        elif class_name not in _classes(folder / f"{module}.py"):
            yield f"{module}.py has no class {class_name}, which {where} of config.json names"


def _classes(path: Path) -> set[str]:
    try:
        return {node.name for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)}
    except (SyntaxError, ValueError):
        return set()


def _code(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    if fault := fault_of_code(folder):
        yield fault
    for name in (name for name in files if name.endswith(".py")):
        try:
            tree = ast.parse((folder / name).read_bytes())
        except (SyntaxError, ValueError) as error:
            yield f"{name} is not valid Python: {error}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                module = f"{(node.module or '').replace('.', '/')}.py"
                if (PurePosixPath(name).parent / module).as_posix() not in files:
                    yield f"{module} is missing, which {name} imports"


def _inputs(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    if not set(files) & set(_INPUT_FILES):
        yield "there is no image processor or tokenizer: save it beside the model with save_pretrained"


def _card(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    if CARD_FILE not in files:
        yield f"{CARD_FILE} is missing: `hf-vit card` writes it from a run's records; without them, write it by hand"
        return
    try:
        card = ModelCard.load(folder / CARD_FILE)
    except Exception as error:  # YAML's errors and whatever a malformed model-index leads to
        yield f"{CARD_FILE}: the metadata cannot be read: {' '.join(str(error).split())}"
        return
    metadata = card.data.to_dict()
    for name in ("library_name", "pipeline_tag"):
        if not isinstance(metadata.get(name), str):
            yield f"{CARD_FILE}: the metadata has no {name}, by which the Hub knows how to load the model"
    for image in sorted(set(_CARD_IMAGES.findall(card.text))):
        if image not in files:
            yield f"{image} is missing, which {CARD_FILE} shows"
    if "run.json" in files:
        try:
            yield from check_card(folder)
        except ValueError as error:
            yield str(error).removeprefix("folder: ").replace(f"{folder}{os.sep}", "")


def _pickles(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    for name in files:
        try:
            if _is_pickle(folder / name):
                yield f"{name} is a pickle, which can run any code when it is opened: remove it or use safetensors"
        except zipfile.BadZipFile as error:
            yield f"{name} is a damaged ZIP archive: {error}"
        except Exception as error:  # picklescan's of an archive that it cannot open
            yield f"{name} cannot be searched for pickles: {error}"


def _is_pickle(path: Path) -> bool:
    """Whether it is one by its name, or by what it holds, of any protocol."""
    if path.suffix in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as content:
                        if PurePosixPath(member.filename).suffix in _PICKLE_SUFFIXES or _holds_pickle(content):
                            return True
        else:
            file.seek(0)
            if _holds_pickle(file):
                return True
    found = scan_file_path(path)
    # Many a text begins as a pickle would and then is none: "import os" imports what stands on the next line.
    return bool(found.issues_count or (found.globals and not found.scan_err))


def _holds_pickle(file: IO[bytes]) -> bool:
    """Whether a file begins as pickles do since protocol 2, or is one of protocols 0 or 1 from its first byte to its
    last, which may hold any text between."""
    head = file.read(2)
    if head[:1] == b"\x80" and head[1:] in (b"\2", b"\3", b"\4", b"\5"):
        return True
    file.seek(0)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        try:
            pickletools.dis(file, nowhere)  # follows the stack, which a text empties at once
        except Exception:  # of whatever no pickle holds
            return False
    return not file.read(1024).strip()


@functools.cache
def _secret_scanner() -> Scanner:
    """The scanner; its rules are compiled once a process and kept in the user's cache."""
    return Scanner()


def _private(folder: Path, files: list[str], config: dict) -> Iterator[str]:
    public_addresses = set(_ADDRESSES.findall(_author_words(folder)))
    labels = config.get("id2label")
    # Class names may look like paths, as those of Open Images do: /m/01g317.
    public_paths = set(map(str, labels.values())) if isinstance(labels, dict) else set()
    own_token = get_token()
    for name in files:
        lines = _lines(folder / name)
        secrets = {found.secret: found for found in _secret_scanner().scan("\n".join(lines)) if found.visible}
        for secret, found in secrets.items():
            where, kind = f"{name} line {found.location['line']}", found.rule_id.rpartition(".")[2]
            yield f"{where} holds what looks like a secret token: {secret[:7]}… ({kind})"
        for number, line in enumerate(lines, start=1):
            where = f"{name} line {number}"
            if own_token and own_token in line and own_token not in secrets:
                yield f"{where} holds your Hub token"
            for key in set(_KEYS.findall(line)):
                if not any(key in secret for secret in secrets):
                    kind = "private-key" if "PRIVATE" in key else "aws-key-id"
                    yield f"{where} holds what looks like a secret token: {key[:7]}… ({kind})"
            if PurePosixPath(name).name in _VOCABULARIES:
                continue
            for found in set(_ADDRESSES.findall(line)) - public_addresses:
                yield f"{where} holds an e-mail address: {found}"
            for found in set(_PATHS.findall(line)) - public_paths:
                yield f"{where} holds an absolute path of a computer: {found}"


def _author_words(folder: Path) -> str:
    try:
        return "\n".join(read_author(folder).values())
    except ValueError:  # `_card` tells
        return ""


def _lines(path: Path) -> list[str]:
    """The lines of a text file, or of the header of a safetensors file; none of other binary files."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            content = file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
        elif b"\0" in file.read(8192):
            return []
        else:
            file.seek(0)
            content = file.read()
    return content.decode("utf-8", errors="replace").splitlines()
