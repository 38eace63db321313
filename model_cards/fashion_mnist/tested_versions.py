"""The versions of transformers that this code was tested with, and what is said of others and of arguments that the
models do not know."""

import ast
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import nn

# The oldest and the newest minor; all between were tested too. Everything that states the range reads it here.
TESTED_TRANSFORMERS = ("5.17", "5.24")

# Arguments that transformers' wrappers around `forward` read (`capture_outputs`, `merge_with_config_defaults`,
# `can_return_tuple`), and those it gives to every model: a part that computes no loss has no use for the number of
# items, nor an encoder for a cache.
_READ_BY_WRAPPERS = (
    *("output_hidden_states", "output_attentions", "output_cross_attentions", "return_dict", "use_cache"),
    *("debug_io", "debug_io_dir", "prune_layers", "num_items_in_batch"),
)

logger = logging.getLogger("hf_vit")


def running() -> str:
    """The version of transformers that runs."""
    return sys.modules["transformers"].__version__  # while it loads, transformers puts another module in its place


def tested_with() -> str:
    """The range, and the version that runs, as a part of a sentence."""
    oldest, newest = TESTED_TRANSFORMERS
    return f"tested with transformers {oldest} to {newest}, this is {running()}"


def is_newer(version: str) -> bool:
    """Whether a version of transformers is of a later minor than any that was tested."""
    return _minor(version) > _minor(TESTED_TRANSFORMERS[1])


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def say_once(message: str) -> None:
    """Log a warning of one line, unless this process has logged it already."""
    # On the logger, which all copies of this file share that a process may have loaded from folders.
    said = vars(logger).setdefault("said", set())
    if message not in said:
        said.add(message)
        logger.warning(message)


def say_if_untested() -> None:
    """Log once if transformers is newer than any version that was tested."""
    if is_newer(running()):
        say_once(
            f"hf_vit was {tested_with()}: compare what its models compute before you rely on it, or install "
            f'"transformers<{_next_minor(TESTED_TRANSFORMERS[1])}"'
        )


def _next_minor(version: str) -> str:
    major, minor = _minor(version)
    return f"{major}.{minor + 1}"


def range_of_code(folder: str | os.PathLike) -> tuple[str, str] | None:
    """The oldest and the newest transformers that the model code in a folder says it was tested with; None if it says
    nothing, as that of version 0.1.0, or there is none. Runs nothing of it."""
    try:
        for node in ast.parse(Path(folder, Path(__file__).name).read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TESTED_TRANSFORMERS":
                oldest, newest = ast.literal_eval(node.value)
                return oldest, newest
    except (OSError, SyntaxError, ValueError):
        pass
    return None


def fault_of_code(folder: str | os.PathLike | None) -> str | None:
    """The fault of the model code in a folder, in one sentence; None if none is known, or there is no folder.

    Translators of version 0.1.0 know the cache of earlier steps by the name that it had up to transformers 5.23.
    """
    if folder is None:
        return None
    folder = Path(folder)
    if not (folder / "encoder_decoder.py").is_file() or (folder / "tested_versions.py").is_file():
        return None
    return (
        "its own code decodes without the tokens before under transformers 5.24 and newer, which gives wrong texts: "
        "`hf-vit doctor --refresh-code FOLDER` puts that of the installed hf_vit in its place"
    )


def refuse_unknown(module: nn.Module, arguments: Mapping, known: tuple[str, ...] = ()) -> None:
    """Raise a `TypeError` for the first argument of a `forward` that the model would ignore. One that is None says
    nothing and is let pass.

    Args:
        module: whose `forward` it is.
        arguments: by name, what its signature did not name.
        known: names that are read nonetheless.
    """
    for name, value in arguments.items():
        if value is not None and name not in known and name not in _READ_BY_WRAPPERS:
            raise TypeError(f"{type(module).__name__}.forward knows no argument {name!r}: hf_vit was {tested_with()}")


__all__ = [
    "TESTED_TRANSFORMERS",
    "fault_of_code",
    "is_newer",
    "range_of_code",
    "refuse_unknown",
    "running",
    "say_if_untested",
    "say_once",
    "tested_with",
]
