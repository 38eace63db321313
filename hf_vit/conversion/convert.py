"""A checkpoint of timm or transformers as a folder of ours, or ours as one of theirs: weights, configuration,
processor or tokenizer, and of ours the code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_vit.conversion.checkpoint import read_checkpoint, read_own
from hf_vit.conversion.models import Changes, from_peer, quiet, to_peer, with_changes
from hf_vit.conversion.processors import adapted_processor, square_processor, timm_data_config
from hf_vit.conversion.source import LIBRARIES
from hf_vit.conversion.timm_models import save_timm_model
from hf_vit.conversion.weight_files import write_weights
from hf_vit.files import check_new_folder, write_folder
from hf_vit.models.configuration_hf_vit import HfViTConfig


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    revision: str | None = None,
    *,
    to: str | None = None,
    changes: Changes | None = None,
    allow_partial: bool = False,
) -> Path:
    """Write a model of ours with the weights of another one, or the other way round.

    Args:
        source: id on the Hub, folder, or file of weights (of DeiT's repository, for instance), of one of our models or
            of an architecture that a file in `hf_vit/conversion/sources` knows.
        folder: where to; it appears once it is complete.
        revision: of the id on the Hub: a branch, a tag or a commit.
        to: "timm" or "transformers": write a model of that library. `None`: one of ours.
        changes: what becomes different on the way.
        allow_partial: take what fits: weights that are missing are initialised anew, others left out.

    Returns:
        `folder`.

    Raises:
        ValueError: if `folder` is there already; the source is not there, is damaged or of another kind; its weights
            are not all there or not all used, the message lists them; or the other library has no architecture for the
            model, the message names the fields.
    """
    changes = changes or Changes()
    if to is not None and to not in LIBRARIES:
        raise ValueError(f"to must be one of {', '.join(LIBRARIES)}, got {to!r}")
    check_new_folder(folder)
    parts: dict[str, list[torch.Tensor]] | None = None
    if to is None and not changes.fields() and not allow_partial:  # the model has all weights and is only written
        parts = {}
    model, processor = _load(str(source), revision, changes, allow_partial, to, parts)
    if to is None:
        return write_folder(Path(folder), lambda stage: _save_ours(stage, model, processor, parts or {}))
    peer = to_peer(model, to, dict(model.state_dict()))
    if to == "transformers":
        return write_folder(Path(folder), lambda stage: _save(stage, peer, processor))
    config: Any = model.config
    labels = [config.id2label[i] for i in range(config.num_labels)] if peer.num_classes else None
    return write_folder(Path(folder), lambda stage: save_timm_model(stage, peer, timm_data_config(processor), labels))


def load_as_ours(
    source: str,
    revision: str | None = None,
    *,
    changes: Changes | None = None,
    allow_partial: bool = False,
    to: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Our model with the weights of another one, and its image processor or tokenizer; arguments and errors as those
    of [`convert`]. One of ours is taken where it is to become another, by `changes` or `to`."""
    return _load(source, revision, changes or Changes(), allow_partial, to, None)


def _load(
    source: str,
    revision: str | None,
    changes: Changes,
    allow_partial: bool,
    to: str | None,
    parts: dict[str, list[torch.Tensor]] | None,
) -> tuple[PreTrainedModel, Any]:
    if (own := read_own(source, revision)) is not None:
        if to is None and not changes.fields():
            raise ValueError(f"source must be a model of timm or transformers, or be changed; {source!r} is ours")
        model, processor = with_changes(own.peer, changes), own.processor
    else:
        found = read_checkpoint(source, revision)
        model = from_peer(found.peer, found.weights, changes, allow_partial, found.faults, parts)
        if found.labels and changes.num_labels is None:
            model.config.id2label = dict(enumerate(found.labels))
            model.config.label2id = {label: i for i, label in enumerate(found.labels)}
        processor = found.processor
        if isinstance(model.config, HfViTConfig):
            processor = square_processor(processor, model.config.image_shape)
    if changes.image_size is not None or changes.num_channels is not None:
        processor = adapted_processor(processor, changes.image_size, changes.num_channels)
    return model, processor


def _save_ours(stage: Path, model: Any, processor: Any, parts: dict[str, list[torch.Tensor]]) -> None:
    with quiet():
        model.save_pretrained(stage, state_dict={})  # all but the weights
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    joined = {name: [part.to(weights[name].dtype) for part in found] for name, found in parts.items()}
    write_weights({name: joined.get(name, [tensor]) for name, tensor in weights.items()}, stage / SAFE_WEIGHTS_NAME)
    processor.save_pretrained(stage)


def _save(stage: Path, model: Any, processor: Any) -> None:
    with quiet():
        model.save_pretrained(stage)
    processor.save_pretrained(stage)


__all__ = ["convert", "load_as_ours"]
