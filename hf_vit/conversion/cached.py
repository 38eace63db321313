"""Converted checkpoints, kept for the next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers.utils import cached_file

import hf_vit
from hf_vit.conversion.checkpoint import is_own
from hf_vit.conversion.convert import convert
from hf_vit.files import digest


def converted(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """A checkpoint as one of ours, converted the first time and found again under `HF_HOME` the next, until its files
    change.

    Args:
        source: as that of [`~hf_vit.conversion.convert.convert`].
        revision: of the id on the Hub.

    Returns:
        What to load, and its revision: the folder and None, or the source itself if it is ours already.

    Raises:
        ValueError: the checkpoint cannot be converted.
    """
    if is_own(source, revision):
        return source, revision
    folder = Path(constants.HF_HOME, "hf_vit", "converted", _key(source, revision))
    if not folder.is_dir():
        convert(source, folder, revision)
    return str(folder), None


def _key(source: str, revision: str | None) -> str:
    """A digest of what decides the result: the files (of the Hub, the commit is in their path), and this version."""
    path = Path(source)
    if not path.exists():
        try:
            found: Any = cached_file(source, "config.json", revision=revision)
            path = Path(found).parent
        except OSError as error:
            raise ValueError(
                f"{source!r} is neither a folder nor an id on the Hub that can be read: {error}"
            ) from error
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest([repr((hf_vit.__version__, stats)).encode()])[:16]


__all__ = ["converted"]
