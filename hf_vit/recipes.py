"""Recipes and other YAML that a user writes: read as version 1.2 has it, and refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hf_vit.files import read_utf8


class _YamlLoader(yaml.SafeLoader):
    """YAML as version 1.2 has it: 1e-5 is a number, and no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: it is no YAML, or a key of a mapping comes twice; the message is one line.
    """
    try:
        return yaml.load(text, _YamlLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def load_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe as a flat dict.

    Raises:
        ValueError: the file does not hold a YAML mapping, or names another recipe.
    """
    try:
        content = read_yaml(read_utf8(path)) or {}
    except ValueError as error:
        raise ValueError(f"recipe {path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"recipe {path} must hold `name: value` lines, found {type(content).__name__}")
    if "recipe" in content:
        raise ValueError(f"recipe {path}: a recipe cannot name another recipe")
    return content
