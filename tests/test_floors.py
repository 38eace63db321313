"""Nothing imports upward: every module of the package needs only what stands on its own floor or below it."""

import ast
from pathlib import Path

import pytest

import hf_vit

PACKAGE = Path(hf_vit.__file__).parent
FLOORS = [
    {"models"},
    # Of `tasks` only what finds them
    {
        "config",
        "errors",
        "extras",
        "files",
        "fingerprint",
        "sample_keys",
        "tasks",
        "record",
        "recipes",
        "unasked",
        "words",
    },
    {"vision", "text", "conversion", "explain", "cost", "sources", "source_arguments", "fast_paths"},
    {"inputs", "drawing"},
    {"isolated"},
    {"cards"},
    {"hub"},
    {"trainer", "tasks.task"},  # the loop and its contract
    {"tasks."},  # their folders
    {"train", "score", "study", "search", "translate", "read", "predict", "embed", "demo", "cli", "export"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room_of(module):
    """The name in `FLOORS` of a module `hf_vit.x.y`; None of the package itself."""
    parts = module.split(".")
    if len(parts) < 2:
        return None
    if parts[1] != "tasks" or len(parts) == 2:
        return parts[1]
    return "tasks.task" if parts[2] == "task" else "tasks."


def imported(path):
    """The modules of the package that a file imports, wherever in it; `from hf_vit.x import y` may name two."""
    own = ["hf_vit", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "hf_vit")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(own[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            if module.split(".")[0] == "hf_vit":
                names = [f"{module}.{alias.name}" for alias in node.names]
                modules = [
                    name for name in names if PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()
                ]
                packages = [name for name in names if PACKAGE.joinpath(*name.split(".")[1:], "__init__.py").is_file()]
                yield from modules + packages or [module]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_imports_upward(path):
    module = ".".join(["hf_vit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    floor = FLOOR_OF[room_of(module)]
    above = {name for name in imported(path) if room_of(name) and FLOOR_OF[room_of(name)] > floor}
    assert not above
