"""The `hf-vit` command: train, score, publish, fetch, convert and examine models. Names are those of the `hf` command.

Every file here holds a verb or a few, and is found by looking. Commands load what they need when they run: the help is
quick, and what an extra brings is asked for where it is used.
"""

from __future__ import annotations

import importlib
import pkgutil

from hf_vit.errors import tell
from hf_vit.extras import MissingExtraError

try:
    from hf_vit.cli.app import app, main
except MissingExtraError as error:
    tell(error)

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["app", "main"]
