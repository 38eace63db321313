"""Everything a user types: groups of arguments, recipes that set their defaults, and clear errors.

The components own their argument groups (dataclasses beside the code that reads them); this module joins them into
one parser on transformers' `HfArgumentParser`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import HfArgumentParser

DEFAULT_RECIPE = "digits"


def argument(default: Any = None, *, help: str, **metadata: Any) -> Any:
    """A dataclass field with a help text; a callable `default` is used as a factory."""
    metadata = {"help": help, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Options(dict):
    """Key-value argument, written `a=1,b=mean` or as a JSON object on the command line."""

    def __init__(self, value: str | dict | None = None):
        if isinstance(value, str):
            value = self._parse(value)
        super().__init__(value or {})

    @staticmethod
    def _parse(text: str) -> dict:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError(f"expected a=b,c=d or a JSON object, found {text!r}")
        return {key.strip(): yaml.safe_load(value) for key, _, value in pairs}


def check_range(name: str, value: float | None, low: float, high: float = float("inf"), *, open_low: bool = False):
    """Raises `ValueError` naming the argument unless low <= value <= high (low < value with `open_low`)."""
    if value is None:
        return
    if value < low or value > high or (open_low and value == low):
        bound = f"{'>' if open_low else '>='} {low}" + ("" if high == float("inf") else f" and <= {high}")
        raise ValueError(f"--{name} must be {bound}, found {value}")


@dataclass
class RunArguments:
    _argument_group_name: ClassVar[str] = "Run"
    key: ClassVar[str] = "run"

    recipe: str = argument(DEFAULT_RECIPE, help="A recipe of a task, or the path of a YAML file.")
    task: str = argument("image_classification", help="What is trained.")
    output_dir: str | None = argument(None, help="Where the run is written; outputs/RECIPE when not given.")
    overwrite_output_dir: bool = argument(False, help="Replace the run that output_dir holds.")
    seed: int = argument(42, help="Seed of initialisation, sampling and augmentation.")
    dry_run: bool = argument(False, help="Print model, parameters, data, steps and schedule, then exit.")

    def __post_init__(self):
        check_range("seed", self.seed, 0)
        if self.output_dir is None:
            self.output_dir = str(Path("outputs") / Path(self.recipe).stem)


class Arguments:
    """The parsed groups, one attribute each (`arguments.run`, `arguments.optimization`, ...).

    `explicit` names the arguments that the recipe or the command line set, `recipe_path` is the recipe's file.
    """

    def __init__(self, groups: Sequence[Any], explicit: set[str], command: list[str], recipe_path: Path):
        self._groups = list(groups)
        for group in self._groups:
            setattr(self, group.key, group)
        self.explicit = sorted(explicit)
        self.command = command
        self.recipe_path = recipe_path

    def to_dict(self) -> dict[str, Any]:
        """Every argument's value, flat."""
        return {name: value for group in self._groups for name, value in dataclasses.asdict(group).items()}


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Takes `none` for no value, so that a flag can undo what a recipe sets."""

    @functools.wraps(parse)
    def parse_or_none(text: str) -> Any:
        return None if text == "none" else parse(text)

    return parse_or_none


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each flag, a short placeholder, and no default where there is none."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=38, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = next(option for option in action.option_strings if option.startswith("--"))
        if action.nargs == 0 or isinstance(action.default, bool):
            return flag
        return f"{flag} {self._format_args(action, '')}"

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str):
        name = "NAME" if action.choices else getattr(action.type, "__name__", "value").upper().replace("STR", "TEXT")
        return lambda size: (name,) * size

    def _get_help_string(self, action: argparse.Action) -> str:
        names = ["none" if choice is None else str(choice) for choice in action.choices or ()]
        choices = f" One of {', '.join(names)}." if names else ""
        if isinstance(action.default, Enum):
            return f"{action.help}{choices} (default: {action.default.value})"
        unset = action.default in (None, argparse.SUPPRESS, {})
        return action.help + choices + ("" if unset else " (default: %(default)s)")


class _Parser(HfArgumentParser):
    """`HfArgumentParser` whose help is short to read and whose errors are one line."""

    def __init__(self, groups: Sequence[type], **kwargs: Any):
        usage = "%(prog)s [--recipe NAME] [--argument VALUE ...]"
        super().__init__(groups, allow_abbrev=False, formatter_class=_HelpFormatter, usage=usage, **kwargs)
        for action in self._actions:
            if action.default is None and action.dest != "help":
                action.type = _or_none(action.type)
                action.choices = action.choices and [*action.choices, None]

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")

    @property
    def names(self) -> list[str]:
        return [field.name for group in self.dataclass_types for field in dataclasses.fields(group)]


def closest(name: str, valid: Sequence[str]) -> str:
    """A hint that names the valid name nearest to `name`, or all of them when none is near."""
    match = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {match[0]!r}?" if match else f"valid names: {', '.join(sorted(valid))}"


def recipe_path(name_or_path: str, recipes: Mapping[str, Path]) -> Path:
    """The file of a recipe that is named, or whose path is given.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = recipes.get(name_or_path, path)
    if not path.is_file():
        raise ValueError(f"--recipe {name_or_path!r} not found; {closest(name_or_path, sorted(recipes))}")
    return path


def load_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe as a flat dict.

    Raises:
        ValueError: the file does not hold a YAML mapping.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"recipe {path} must hold `name: value` lines, found {type(content).__name__}")
    return content


def _as_flags(recipe: dict[str, Any]) -> list[str]:
    """A recipe as command line, so that it passes the same types and checks as flags do."""
    flags = []
    for name, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            flags.append(f"--{name}={json.dumps(value)}")
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def _parse_known(parser: _Parser, flags: list[str], origin: str) -> dict[str, Any]:
    namespace, unknown = parser.parse_known_args(flags)
    for flag in unknown:
        name = flag.lstrip("-").partition("=")[0].replace("-", "_")
        problem = f"unknown {origin} {name!r}; {closest(name, parser.names)}"
        parser.error(problem if flag.startswith("--") else f"{origin}: value {flag!r} belongs to no argument")
    return vars(namespace)


def _explicit(parser: _Parser, flags: list[str]) -> set[str]:
    given = {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    return {name for name in parser.names if name in given or f"no_{name}" in given}


def parse_groups(groups: Sequence[type], argv: list[str], description: str) -> list[Any]:
    """The groups filled from a command line without recipes; exits with status 2 and one line where it is wrong."""
    parser = _Parser(groups, description=description)
    parser.usage = "%(prog)s [--argument VALUE ...]"
    return _fill(parser, groups, _parse_known(parser, argv, "argument"))


def _fill(parser: _Parser, groups: Sequence[type], values: dict[str, Any]) -> list[Any]:
    values = {name: None if value == [None] else value for name, value in values.items()}
    try:
        return [group(**{f.name: values[f.name] for f in dataclasses.fields(group)}) for group in groups]
    except ValueError as error:
        parser.error(str(error))


def parse_arguments(
    groups_of: Callable[[str], Sequence[type]], recipes: Mapping[str, Path], argv: list[str] | None = None
) -> Arguments:
    """Recipe and flags to arguments; flags win over the recipe, the recipe over the dataclasses' defaults.

    `Options` given by a flag are merged over the recipe's. A flag also undoes what the recipe says of the
    arguments that it `replaces`, in the words of its dataclass: of two ways to name the data, the typed one counts.

    Args:
        groups_of: the argument dataclasses of a task's name.
        recipes: the files of the recipes by name.
        argv: the command line without the program's name; `sys.argv[1:]` when None.

    Exits with status 2 and one line on an unknown name, a value of the wrong type or out of range.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    first = _Parser([RunArguments], add_help=False)
    chosen, _ = first.parse_known_args([flag for flag in argv if flag not in ("-h", "--help")])
    try:
        path = recipe_path(chosen.recipe, recipes)
        recipe = load_recipe(path)
        if "recipe" in recipe:
            raise ValueError("a recipe cannot name another recipe")
        task = chosen.task if "task" in _explicit(first, argv) else recipe.get("task", chosen.task)
        groups = list(groups_of(task))
    except ValueError as error:
        first.error(str(error))
    parser = _Parser(
        groups,
        description="Trains a model. A recipe sets any of these arguments, flags override it. "
        "With `--recipe NAME` or `--task NAME` this lists the arguments of that task.",
    )
    by_recipe = _parse_known(parser, _as_flags(recipe), f"key in recipe {chosen.recipe!r}:")
    defaults = {name: parser.get_default(name) for name in parser.names}
    parser.set_defaults(**by_recipe)
    values, typed = _parse_known(parser, argv, "argument"), _explicit(parser, argv)
    replaced = _replaced(groups, {name for name in typed if values[name] not in (None, [None])})
    for name, value in values.items():
        if name in replaced and name not in typed:
            values[name] = defaults[name]
        elif isinstance(value, Options):
            values[name] = Options({**(defaults if name in replaced else by_recipe)[name], **value})
    values["recipe"] = chosen.recipe
    by_recipe_alone = (set(recipe) & set(parser.names)) - replaced
    return Arguments(_fill(parser, groups, values), by_recipe_alone | typed, argv, path)


def _replaced(groups: Sequence[type], typed: set[str]) -> set[str]:
    """The arguments of which the recipe's word does not count, because of typed ones that `replaces` names."""
    rules = [rule for group in groups for rule in getattr(group, "replaces", {}).items()]
    return {other for name, others in rules if name in typed for other in others}
