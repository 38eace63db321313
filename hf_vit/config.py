"""Everything a user types: groups of arguments, recipes that set their defaults, and clear errors.

The components own their argument groups (dataclasses beside the code that reads them), a subclass of `Arguments` names
the groups of a command, and this module reads recipe and flags into it on transformers' `HfArgumentParser`. Each value
is typed once: a flag's text by the parser, a recipe's value by `_Parser.typed`.

Why not a library that does all of it: jsonargparse 4.53 and tyro 1.0 were tried on these groups. Both read flat flags
into nested dataclasses, but what makes these commands is the rest, and most of it would stay or have to be put back:

- Neither tells which arguments were given, which `replaces`, the record and the card need, and neither merges a
  mapping of the command line over that of a file.
- jsonargparse takes no `--image_size 32 64` (it wants `[32,64]`), no `--learning-rate`, no bare `--streaming` and no
  `--no_use_ema_weights`; it calls no value `null`, where these say `none`, and of a misspelt name it says no near one.
  Its errors are a usage of all flags with the reason below, and a `ValueError` of a dataclass is none of them: where
  groups are flat it returns values that no `__post_init__` has seen.
- tyro takes a bare `--streaming` or `--streaming true`, not both, no `a=1,b=mean`, and `None` with a capital. It
  names near names, in a box of five lines or more, and it reads no files: typing a recipe's values would stay here.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_vit.errors import DEBUG_HELP
from hf_vit.recipes import load_recipe, read_yaml

DEFAULT_RECIPE = "digits"


def argument(default: Any = None, *, help: str, **metadata: Any) -> Any:
    """A dataclass field with a help text; a callable `default` is used as a factory."""
    metadata = {"help": help, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Options(dict[str, Any]):
    """Key-value argument, written `a=1,b=mean` or as a JSON object on the command line."""

    def __init__(self, value: str | Mapping[str, Any] | None = None):
        super().__init__(self._parse(value) if isinstance(value, str) else value or {})

    @staticmethod
    def _parse(text: str) -> dict[str, Any]:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError(f"expected a=b,c=d or a JSON object, found {text!r}")
        return {key.strip(): read_yaml(value) for key, _, value in pairs}


def check_range(
    name: str, value: float | None, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Raises `ValueError` naming the argument unless low <= value <= high (low < value with `open_low`)."""
    if value is None:
        return
    if value < low or value > high or (open_low and value == low):
        bound = f"{'>' if open_low else '>='} {low}" + ("" if high == float("inf") else f" and <= {high}")
        raise ValueError(f"--{name} must be {bound}, found {value}")


@dataclass
class RunArguments:
    _argument_group_name: ClassVar[str] = "Run"

    recipe: str = argument(DEFAULT_RECIPE, help="A recipe of a task, or the path of a YAML file.")
    task: str = argument("image_classification", help="What is trained.")
    output_dir: str = argument(None, help="Where the run is written; outputs/RECIPE when not given.")
    overwrite_output_dir: bool = argument(False, help="Replace the run that output_dir holds.")
    seed: int = argument(42, help="Seed of initialisation, sampling and augmentation.")
    find_learning_rate: bool = argument(
        False, help="Instead of training, raise the learning rate from step to step and draw how the loss follows."
    )
    dry_run: bool = argument(False, help="Print model, parameters, data, steps and schedule, then exit.")

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0)
        if self.output_dir is None:
            self.output_dir = str(Path("outputs") / Path(self.recipe).stem)


@dataclass(kw_only=True)
class Arguments:
    """Base of a command's arguments: a subclass has one field a group, whose type is the group's dataclass.

    Args:
        explicit: names of the arguments that the recipe or the command line set, sorted.
        command: the command line without the program's name.
        recipe_path: the recipe's file.

    Example:
        >>> @dataclass(kw_only=True)
        ... class TrainingArguments(Arguments):
        ...     optimization: OptimizationArguments
    """

    run: RunArguments
    explicit: list[str]
    command: list[str]
    recipe_path: Path

    @classmethod
    def group_types(cls) -> dict[str, type]:
        """The groups' dataclasses by the names of their fields: `run`, then a subclass's own before its base's."""
        hints = get_type_hints(cls)
        names = [name for base in cls.__mro__ for name in getattr(base, "__annotations__", ())]
        groups = {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}
        return {"run": groups.pop("run"), **groups}

    def to_dict(self) -> dict[str, Any]:
        """Every argument's value, flat."""
        groups = [getattr(self, name) for name in self.group_types()]
        return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


ArgumentsType = TypeVar("ArgumentsType", bound=Arguments)


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Takes `none` for no value, so that a flag can undo what a recipe sets."""

    @functools.wraps(parse)
    def parse_or_none(text: str) -> Any:
        return None if text == "none" else parse(text)

    return parse_or_none


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each flag, a short placeholder, and no default where there is none."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=38, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = next(option for option in action.option_strings if option.startswith("--"))
        if action.nargs == 0 or isinstance(action.default, bool):
            return flag
        return f"{flag} {self._format_args(action, '')}"

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        name = "NAME" if action.choices else getattr(action.type, "__name__", "value").upper().replace("STR", "TEXT")
        return lambda size: (name,) * size

    def _get_help_string(self, action: argparse.Action) -> str:
        names = ["none" if choice is None else str(choice) for choice in action.choices or ()]
        choices = f" One of {', '.join(names)}." if names else ""
        if isinstance(action.default, Enum):
            return f"{action.help}{choices} (default: {action.default.value})"
        unset = action.default in (None, argparse.SUPPRESS, {})
        return f"{action.help}{choices}" + ("" if unset else " (default: %(default)s)")


_MOST_NAMES = 40  # in one message
_NOT_GIVEN: Any = object()
# By the type of a field: how a recipe's value that is no text may be written, and in words.
_WRITTEN_AS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((int, float), "a text"),
    Options: ((dict,), "a mapping"),
}


class _Parser(HfArgumentParser):
    """`HfArgumentParser` whose help is short to read, whose errors are one line, and which tells what was given."""

    def __init__(self, groups: Iterable[type], **kwargs: Any):
        kwargs.setdefault("epilog", DEBUG_HELP)
        kwargs.setdefault("usage", "%(prog)s [--recipe NAME] [--argument VALUE ...]")
        super().__init__(cast(Any, groups), allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self._types = {name: hint for group in self.dataclass_types for name, hint in get_type_hints(group).items()}
        self._action_of: dict[str, argparse.Action] = {}
        for action in self._actions:
            self._action_of.setdefault(action.dest, action)  # --no_NAME comes after --NAME
            if action.default is None and action.dest != "help":
                action.type = _or_none(cast(Callable[[str], Any], action.type or str))
                action.choices = action.choices and [*action.choices, None]
        self.defaults = {name: self.get_default(name) for name in self.names}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    @property
    def names(self) -> list[str]:
        return [field.name for group in self.dataclass_types for field in dataclasses.fields(group)]

    def given(self, flags: Sequence[str], *, ignore_unknown: bool = False) -> dict[str, Any]:
        """The arguments that these flags set, and no others; exits where one is unknown or of the wrong type."""
        untouched = argparse.Namespace(**dict.fromkeys(self.names, _NOT_GIVEN))
        namespace, unknown = self.parse_known_args(flags, untouched)
        for flag in () if ignore_unknown else unknown:
            if not flag.startswith("--"):
                self.error(f"argument: value {flag!r} belongs to no argument")
            name = flag[2:].partition("=")[0].replace("-", "_")
            self.error(f"unknown argument {name!r}; {closest(name, self.names)}")
        given = {name: value for name, value in vars(namespace).items() if value is not _NOT_GIVEN}
        return {name: None if value == [None] else value for name, value in given.items()}

    def typed(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's values, each of its argument's type; a text is read as the flag's would be.

        Raises:
            ValueError: an unknown name, or a value of another type or none of the choices.
        """
        for name in recipe:
            if name not in self.names:
                raise ValueError(f"unknown key {name!r}; {closest(str(name), self.names)}")
        return {name: self._typed(name, value) for name, value in recipe.items()}

    def _typed(self, name: str, value: Any) -> Any:
        hint = self._types[name]
        is_optional = type(None) in get_args(hint)
        if is_optional:
            if value is None:
                return None
            hint = next(each for each in get_args(hint) if each is not type(None))
        if get_origin(hint) is list:
            values = value if isinstance(value, list) else [value]
            found = [self._typed_one(name, get_args(hint)[0], each) for each in values]
            return None if found == [None] else found
        return self._typed_one(name, hint, value)

    def _typed_one(self, name: str, hint: Any, value: Any) -> Any:
        action = self._action_of[name]
        kind = hint if hint in _WRITTEN_AS else str  # those of named choices are texts
        accepted, expected = _WRITTEN_AS[kind]
        if isinstance(value, str):
            try:
                value = action.type(value) if callable(action.type) else value
            except (argparse.ArgumentTypeError, TypeError, ValueError):
                raise ValueError(f"{name} must be {expected}, found {value!r}") from None
        elif isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
            value = kind(value)
        else:
            quote = "; YAML reads no, off, yes and on as false and true: quote it" if isinstance(value, bool) else ""
            raise ValueError(f"{name} must be {expected}, found {value!r}{quote if kind is str else ''}")
        if action.choices is not None and value not in action.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, action.choices))}, found {value!r}")
        return value

    def fill(self, groups: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
        """The groups, made of the values; exits where one refuses them."""
        try:
            return {
                key: group(**{each.name: values[each.name] for each in dataclasses.fields(group)})
                for key, group in groups.items()
            }
        except ValueError as error:
            self.error(str(error))


def closest(name: str, valid: Sequence[str]) -> str:
    """A hint that names the valid name nearest to `name`, or all of them when none is near and they are not many."""
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.7)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"valid names: {', '.join(sorted(valid))}" if len(valid) <= _MOST_NAMES else "--help lists what there is"


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


def parse_groups(groups: Sequence[type], argv: Sequence[str], description: str) -> list[Any]:
    """The groups filled from a command line without recipes; exits with status 2 and one line where it is wrong."""
    parser = _Parser(groups, description=description, usage="%(prog)s [--argument VALUE ...]")
    by_name = {group.__name__: group for group in groups}
    return list(parser.fill(by_name, {**parser.defaults, **parser.given(argv)}).values())


def parse_arguments(
    arguments_of: Callable[[str], type[ArgumentsType]],
    recipes: Mapping[str, Path],
    argv: Sequence[str] | None = None,
) -> ArgumentsType:
    """Recipe and flags to arguments; flags win over the recipe, the recipe over the dataclasses' defaults.

    `Options` given by a flag are merged over the recipe's. A flag also undoes what the recipe says of the
    arguments that it `replaces`, in the words of its dataclass: of two ways to name the data, the typed one counts.

    Args:
        arguments_of: the class of a task's arguments, by the task's name.
        recipes: the files of the recipes by name.
        argv: the command line without the program's name; `sys.argv[1:]` when None.

    Exits with status 2 and one line on an unknown name, a value of the wrong type or out of range.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    first = _Parser([RunArguments], add_help=False)
    chosen = first.given([flag for flag in argv if flag not in ("-h", "--help")], ignore_unknown=True)
    name = chosen.get("recipe", DEFAULT_RECIPE)
    try:
        path = recipe_path(name, recipes)
        recipe = load_recipe(path)
        kind = arguments_of(chosen.get("task", recipe.get("task", first.defaults["task"])))
    except ValueError as error:
        first.error(str(error))
    groups = kind.group_types()
    parser = _Parser(
        groups.values(),
        description="Trains a model. A recipe sets any of these arguments, flags override it. "
        "With `--recipe NAME` or `--task NAME` this lists the arguments of that task.",
    )
    try:
        by_recipe = parser.typed(recipe)
    except ValueError as error:
        parser.error(f"recipe {name!r}: {error}")
    parser.set_defaults(**by_recipe)  # which the help states
    by_flag = parser.given(argv)
    replaced = _replaced(groups.values(), {name for name, value in by_flag.items() if value is not None})
    by_recipe = {name: value for name, value in by_recipe.items() if name not in replaced}
    values = {**parser.defaults, **by_recipe, **by_flag}
    for name, value in by_flag.items():
        if isinstance(value, Options):
            values[name] = Options({**parser.defaults[name], **by_recipe.get(name, {}), **value})
    return kind(
        **parser.fill(groups, values),
        explicit=sorted({*by_recipe, *by_flag}),
        command=argv,
        recipe_path=path,
    )


def _replaced(groups: Iterable[type], typed: set[str]) -> set[str]:
    """The arguments of which the recipe's word does not count, because of typed ones that `replaces` names."""
    rules = [rule for group in groups for rule in getattr(group, "replaces", {}).items()]
    return {other for name, others in rules if name in typed for other in others}
