"""Tasks that can be trained: a task is a folder here, found by looking.

A task lives in a folder with a `task.py`: here, or in any folder named by the environment variable `HF_VIT_TASKS_PATH`
(several are separated as in `PATH`) or by an entry point of the group `hf_vit.tasks`, whose value is a package of task
folders. All of them are modules `hf_vit.tasks.<name>`, so that loader workers and other ranks import the same.
"""

import difflib
import importlib
import importlib.util
import os
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

ENTRY_POINT_GROUP = "hf_vit.tasks"
PATH_VARIABLE = "HF_VIT_TASKS_PATH"


def _folders_of_others() -> list[str]:
    folders = [folder for folder in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if folder]
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        package = importlib.util.find_spec(entry_point.value)
        folders += list(package.submodule_search_locations or ()) if package else []
    return folders


__path__ = [*__path__, *_folders_of_others()]


def folder_of(name: str) -> Path:
    """The folder of a task.

    Raises:
        ValueError: there is no such task.
    """
    for parent in __path__:
        # A record may hold any text as its task: a path leads nowhere.
        if name.isidentifier() and Path(parent, name, "task.py").is_file():
            return Path(parent, name)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(names())}"
    raise ValueError(f"--task {name!r} is unknown; {hint}")


def names() -> list[str]:
    """The tasks that there are, sorted."""
    return sorted({path.parent.name for parent in __path__ for path in Path(parent).glob("*/task.py")})


def recipes() -> dict[str, Path]:
    """The recipes of all tasks by name; files `RECIPE.card.yaml` are none.

    Raises:
        ValueError: two tasks have a recipe of the same name.
    """
    found: dict[str, Path] = {}
    for path in (path for name in names() for path in sorted((folder_of(name) / "recipes").glob("*.yaml"))):
        if "." in path.stem:
            continue
        if path.stem in found:
            raise ValueError(f"recipes must have names of their own, found {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def load(name: str, part: str = "task") -> ModuleType:
    """A module of a task: `task`, `card`, ...

    Raises:
        ValueError: there is no such task, or it lacks that part.
    """
    if not (folder_of(name) / f"{part}.py").is_file():
        raise ValueError(f"task {name!r} has no {part}.py")
    return importlib.import_module(f"{__name__}.{name}.{part}")


def class_of(name: str, part: str, base: type) -> Any:
    """The one class derived from `base` that a module of a task defines.

    Raises:
        ValueError: there is no such task or module, or the module defines no such class or several.
    """
    module = load(name, part)
    own = (value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__)
    found = [value for value in own if isinstance(value, type) and issubclass(value, base)]
    if len(found) != 1:
        raise ValueError(f"{module.__file__} must define one class derived from {base.__name__}, found {len(found)}")
    return found[0]
