"""The model code that lies in a folder beside the weights, and how this package's is put in its place."""

import ast
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from hf_vit.files import write_atomically
from hf_vit.models import tested_versions
from hf_vit.models.tested_versions import TESTED_TRANSFORMERS, range_of_code
from hf_vit.unasked import unasked

MODELS = Path(tested_versions.__file__).parent


def is_older(folder: str | os.PathLike) -> bool:
    """Whether a folder's own code is that of a version of this package that was tested with older versions of
    transformers than this one. Runs nothing of it."""
    folder = Path(folder)
    config = _config_of(folder)
    if config is None or not _reached(folder, _entries(config)):
        return False
    tested = range_of_code(folder)
    return tested is None or _number(tested[1]) < _number(TESTED_TRANSFORMERS[1])


@unasked()
def refresh_code(folder: str | os.PathLike) -> list[str]:
    """Put this package's code in the place of that in a folder. Its other files stay as they are, but for the
    configuration, which is saved anew. Runs nothing of the folder.

    Returns:
        The names of the files that changed, were added or went, in order; none if the code was this package's.

    Raises:
        ValueError: if the folder holds no model of this package.
    """
    folder = Path(folder)
    fresh = _config_of(folder)
    if fresh is None:
        raise ValueError(f"folder: {folder} holds no model of this package: its config.json names no such model_type")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    old = _reached(folder, _entries(config))
    config.auto_map = {**(config.auto_map or {}), **fresh.auto_map}
    if hasattr(fresh, "custom_pipelines"):
        config.custom_pipelines = {**(getattr(config, "custom_pipelines", None) or {}), **fresh.custom_pipelines}
    names = _reached(MODELS, _entries(fresh))
    new = {name: (MODELS / name).read_bytes() for name in names}
    changed = {name for name in new if not (folder / name).is_file() or (folder / name).read_bytes() != new[name]}
    gone = {name for name in old if name not in new}
    if not changed and not gone:
        return []
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        new["config.json"] = Path(directory, "config.json").read_bytes()
    for name in (*changed, "config.json"):
        write_atomically(folder / name, new[name])
    for name in gone:
        (folder / name).unlink()
    return sorted({*changed, *gone, "config.json"})


def _config_of(folder: Path) -> PreTrainedConfig | None:
    """A new configuration of the folder's type, if that is of this package."""
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        config = AutoConfig.for_model(model_type)
    except (OSError, KeyError, TypeError, ValueError):
        return None
    package = tested_versions.__name__.rpartition(".")[0]
    return config if type(config).__module__.startswith(f"{package}.") else None


def _entries(config: PreTrainedConfig) -> set[str]:
    """The modules that `auto_map` and `custom_pipelines` of a configuration name."""
    pipelines = (pipeline["impl"] for pipeline in (getattr(config, "custom_pipelines", None) or {}).values())
    references = [*(config.auto_map or {}).values(), *pipelines]
    return {reference.partition(".")[0] for reference in references if "--" not in reference}


def _reached(folder: Path, modules: Iterable[str]) -> list[str]:
    """The files of these modules and of all siblings that they import, they import, and so on, in order; those that
    are there."""
    found, unread = set(), [f"{module}.py" for module in modules]
    while unread:
        name = unread.pop()
        if name in found or not (folder / name).is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((folder / name).read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                unread.append(f"{node.module}.py")
    return sorted(found)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
