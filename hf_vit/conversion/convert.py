"""A checkpoint of timm or transformers as a folder of ours, or ours as one of theirs: weights, configuration,
processor or tokenizer, and of ours the code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_vit.conversion.checkpoint import read_checkpoint
from hf_vit.conversion.models import Changes, from_peer


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    revision: str | None = None,
    *,
    changes: Changes | None = None,
    allow_partial: bool = False,
) -> Path:
    """Write a model of ours with the weights of another one.

    Args:
        source: id on the Hub, folder, or file of weights (of DeiT's repository, for instance), of an architecture that
            a file in `hf_vit/conversion/sources` knows.
        folder: where to; it appears once it is complete.
        revision: of the id on the Hub: a branch, a tag or a commit.
        changes: what becomes different on the way.
        allow_partial: take what fits: weights that are missing are initialised anew, others left out.

    Returns:
        `folder`.

    Raises:
        ValueError: if `folder` is there already, or the source is not there, is damaged or of another kind, or its
            weights are not all there or not all used; the message lists them.
    """
    _check_new(folder)
    model, processor = load_as_ours(str(source), revision, changes=changes, allow_partial=allow_partial)

    def write(stage: Path) -> None:
        model.save_pretrained(stage)
        processor.save_pretrained(stage)

    return _write(Path(folder), write)


def load_as_ours(
    source: str, revision: str | None = None, *, changes: Changes | None = None, allow_partial: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Our model with the weights of another one, and its image processor or tokenizer; arguments and errors as those
    of [`convert`]."""
    found = read_checkpoint(source, revision)
    model = from_peer(found.peer, found.weights, changes, allow_partial, found.faults)
    if found.labels and (changes is None or changes.num_labels is None):
        model.config.id2label = dict(enumerate(found.labels))
        model.config.label2id = {label: i for i, label in enumerate(found.labels)}
    return model, found.processor


def _check_new(folder: str | os.PathLike[str]) -> None:
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must be a new or an empty one, got {str(folder)!r}")


def _write(folder: Path, write: Callable[[Path], Any]) -> Path:
    """The folder, written beside its place and moved there when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as directory:
        stage = Path(directory, folder.name)
        write(stage)
        os.replace(stage, folder)
    return folder


__all__ = ["convert", "load_as_ours"]
