"""Models of other libraries as ours, and ours as theirs, in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_vit.conversion.resize import adapt_channels, resample_kernel
from hf_vit.conversion.rules import Peer, Rule, apply_rules, counterparts
from hf_vit.conversion.source import Source, all_sources, meaning, source_of

_FAULTS = ("missing", "unused", "of another shape")
_KERNEL = "embeddings.patch_embedding.projection.weight"
_HEADS = ("classifier.", "distillation_head.")


@dataclass(frozen=True)
class Changes:
    """How a Vision Transformer that is converted differs from its source; `None` leaves it as it is.

    Args:
        num_labels: classes of a new head, at least 1.
        image_size, patch_size: (height, width) in pixels; positions and kernels follow.
        num_channels: of the images, at least 1; kernels are summed or repeated.
    """

    num_labels: int | None = None
    image_size: tuple[int, int] | None = None
    patch_size: tuple[int, int] | None = None
    num_channels: int | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a configuration that change."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if (count := given.pop("num_labels", None)) is not None:
            if count < 1:
                raise ValueError(f"num_labels must be at least 1, got {count}")
            given["id2label"] = {i: f"LABEL_{i}" for i in range(count)}
            given["label2id"] = {label: i for i, label in given["id2label"].items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def from_peer(
    peer: Peer,
    weights: dict[str, torch.Tensor] | None = None,
    changes: Changes | None = None,
    allow_partial: bool = False,
    faults: Mapping[str, list[str]] | None = None,
    parts: dict[str, list[torch.Tensor]] | None = None,
) -> PreTrainedModel:
    """Our model of what a model of timm or transformers computes, in eval mode.

    Args:
        peer: the other library's model.
        weights: by the peer's names, emptied while they are converted; copies of the peer's own by default. The peer
            may be on the meta device if they are given.
        changes: what becomes different on the way.
        allow_partial: take what fits: weights that are missing are initialised anew, others left out.
        faults: weights that were found missing, unused or of another shape (the keys) when the peer was read.
        parts: takes the parts of weights that are others joined along the first axis, by our names, for a model that
            is only written: its own such weights are then zeros, and nothing is in memory twice.

    Raises:
        ValueError: the peer is of an architecture that is not known here, or has a part that ours lacks; or weights
            are missing, unused or of another shape, all of which are listed.
    """
    source = source_of(peer)
    config = source.config(peer)
    model_class = source.model_class(peer)
    rules = source.bound_rules(config, peer, model_class)
    if weights is None:
        weights = {name: tensor.detach().clone() for name, tensor in peer.state_dict().items()}
    converted = apply_rules(weights, rules, parts)
    found = _counted([dict(faults or {}), {"unused": list(weights)}], source.ignored)
    weights.clear()
    new_head = False
    if changes is not None and changes.fields():
        config, converted, new_head = _changed(config, converted, changes)
    model = _load(model_class, config, converted, rules, found, allow_partial, new_head)
    if getattr(peer, "generation_config", None) is not None and model.can_generate():
        model.generation_config = copy.deepcopy(peer.generation_config)
    return model.eval()


def with_changes(model: PreTrainedModel, changes: Changes) -> PreTrainedModel:
    """A Vision Transformer of ours with other classes, sizes or channels; the model itself where none are given.

    Raises:
        ValueError: it is none, or the changes do not fit it.
    """
    if not changes.fields():
        return model
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config, weights, new_head = _changed(model.config, weights, changes)
    return _load(type(model), config, weights, [], {}, False, new_head).eval()


def _load(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, torch.Tensor],
    rules: list[Rule],
    faults: dict[str, list[str]],
    allow_partial: bool,
    new_head: bool,
) -> PreTrainedModel:
    with quiet():
        loaded: Any = model_class.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, info = loaded
    missing = [name for name in info["missing_keys"] if not (new_head and name.startswith(_HEADS))]
    own = {
        "missing": [theirs for name in missing for theirs in counterparts(name, rules) or [name]],
        "unused": list(info["unexpected_keys"]),
        "of another shape": [
            f"{' + '.join(counterparts(name, rules)) or name} {tuple(found)} for {tuple(wanted)}"
            for name, found, wanted in info["mismatched_keys"]
        ],
    }
    faults = _counted([faults, own], ())
    if any(faults.values()) and not allow_partial:
        raise ValueError(
            f"weights must be those of the whole model, got {_listed(faults)}; --allow-partial takes what fits"
        )
    return model


def _counted(reports: list[dict[str, list[str]]], ignored: tuple[str, ...]) -> dict[str, list[str]]:
    """All names of the reports, each once, but for those that match one of the patterns."""
    names = {kind: sorted({name for report in reports for name in report.get(kind, ())}) for kind in _FAULTS}
    return {
        kind: [name for name in found if not any(re.search(pattern, name) for pattern in ignored)]
        for kind, found in names.items()
    }


def _listed(faults: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)


def _changed(
    config: PreTrainedConfig, weights: dict[str, torch.Tensor], changes: Changes
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor], bool]:
    """The configuration and the weights with the changes, and whether the heads are to be made anew."""
    if not hasattr(config, "patch_shape"):
        raise ValueError(f"{', '.join(changes.fields())} must not be given for a {config.model_type}")
    fields = changes.fields()
    is_resized = bool({"image_size", "patch_size"} & set(fields))
    if is_resized:  # with it the configuration keeps the grid on which closed forms count
        fields.setdefault("image_size", config.image_size)
    old_shape, old_channels = config.patch_shape, config.num_channels
    changed = type(config).from_dict(config.to_dict(), **fields)
    (name,) = [name for name in weights if name.endswith(_KERNEL)]
    if (changed.patch_shape, changed.num_channels) != (old_shape, old_channels):
        if config.patch_embedding != "conv":
            raise ValueError(
                "patch_embedding must be 'conv' for another patch_size or num_channels, "
                f"got {config.patch_embedding!r}"
            )
        kernel = weights[name].unflatten(1, (old_channels, *old_shape))
        kernel = resample_kernel(adapt_channels(kernel, changed.num_channels), changed.patch_shape)
        weights = {**weights, name: kernel.flatten(1)}
    new_head = "id2label" in fields
    if new_head:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_HEADS)}
    return changed, weights, new_head


def to_peer(model: PreTrainedModel, library: str, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The other library's model of what ours computes, in eval mode.

    Args:
        model: one of ours.
        library: "timm" or "transformers".
        weights: by our names, emptied while they are converted; copies of the model's own by default.

    Raises:
        ValueError: no architecture of that library can express the model; for each the first field is named that it
            cannot.
    """
    source, peer = _target(model, library)
    rules = source.bound_rules(model.config, peer, type(model))
    if weights is None:
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    converted = apply_rules(weights, [rule.reversed() for rule in rules])
    if isinstance(peer, PreTrainedModel):
        options: dict[str, Any] = {"add_pooling_layer": False} if getattr(peer, "pooler", ...) is None else {}
        with quiet():
            loaded: Any = type(peer).from_pretrained(
                None,
                config=peer.config,
                state_dict=converted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        peer, info = loaded
        faults = {
            "missing": sorted(info["missing_keys"]),
            "unused": sorted([*weights, *info["unexpected_keys"]]),
            "of another shape": sorted(name for name, *_ in info["mismatched_keys"]),
        }
        faults = _counted([faults], source.ignored)
        if any(faults.values()):
            raise ValueError(f"the weights do not fit a {type(peer).__name__}: {_listed(faults)}")
    else:
        peer = source.peer(model)
        peer.load_state_dict(converted, assign=True)
    if getattr(model, "generation_config", None) is not None and hasattr(peer, "generation_config"):
        peer.generation_config = copy.deepcopy(model.generation_config)
    return peer.eval()


def _target(model: PreTrainedModel, library: str) -> tuple[Source, Peer]:
    wanted, refusals = meaning(model.config), []
    candidates = [
        source for source in all_sources() if source.library == library and type(model.config) is source.ours
    ]
    for source in candidates:
        try:
            with torch.device("meta"):
                peer = source.peer(model)
            found = meaning(source.config(peer))
            if source.model_class(peer) is not type(model):
                raise ValueError(f"its models are no {type(model).__name__}")
            for name, value in wanted.items():
                if name not in source.expressed and found.get(name) != value:
                    raise ValueError(f"{name} must be {_plain(found.get(name))}, got {_plain(value)}")
        except (ValueError, TypeError, StrictDataclassError) as error:  # of their constructors too
            refusals.append(f"{source.peers[0]}: {error}")
        else:
            return source, peer
    raise ValueError(f"{library} has no architecture for this model: {'; '.join(refusals)}")


def _plain(value: Any) -> str:
    return repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from reporting on the terminal what is raised as an error."""
    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()


__all__ = ["Changes", "from_peer", "quiet", "to_peer", "with_changes"]
