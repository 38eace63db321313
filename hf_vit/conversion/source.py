"""Architectures of other libraries: what one owes to be converted, and where they are found."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit.conversion import sources
from hf_vit.conversion.rules import Peer, Rule
from hf_vit.models.configuration_hf_vit import HfViTConfig

LIBRARIES = ("timm", "transformers")


class Source(ABC):
    """One architecture of another library, and how it and ours become each other. A file in `sources` holds one, or a
    few that are alike, in its list `SOURCES`:

        class Sketch(Source):
            library = "transformers"
            peers = ("SketchModel", "SketchForImageClassification")

            def config(self, peer):
                return HfViTConfig(hidden_size=peer.config.width, ...)

            def peer(self, model):
                return transformers.SketchForImageClassification(transformers.SketchConfig(width=..., ...))

            def rules(self, config, peer):
                return [same("vit.norm.*", "sketch.final_norm.*"), ...]

        SOURCES = [Sketch()]

    Rules are written once, with the names of models that have heads; of a body alone the beginnings
    `base_model_prefix` go, on either side. What `peer` leaves out of our configuration need not be refused there: a
    model is converted only if `config` of its peer says the same as its own.
    """

    library: ClassVar[str]
    peers: ClassVar[tuple[str, ...]]  # names of the classes of its models
    ours: ClassVar[type[PreTrainedConfig]] = HfViTConfig
    ignored: ClassVar[tuple[str, ...]] = ()  # patterns of the peer's weights that take no part in what it computes
    loads: ClassVar[Mapping[str, str]] = {}  # which class reads a checkpoint of this other class
    expressed: ClassVar[frozenset[str]] = frozenset()  # fields of ours that its weights, not its configuration, say

    @abstractmethod
    def config(self, peer: Peer) -> PreTrainedConfig:
        """Our configuration of what the peer computes. The peer may be on the meta device, without its values.

        Raises:
            ValueError: ours cannot compute it; the message names the peer's field.
        """

    @abstractmethod
    def peer(self, model: PreTrainedModel) -> nn.Module:
        """A model of theirs for the weights of ours; it may be called under the meta device.

        Raises:
            ValueError: theirs cannot compute what ours does; the message names our field.
        """

    @abstractmethod
    def rules(self, config: Any, peer: Peer) -> Iterable[Rule]:
        """Rules for all weights of models with our configuration and its peer."""

    @abstractmethod
    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        """Our class for this peer: with a head if it has one."""

    def prefix(self, peer: Peer) -> str:
        """The beginning of the names in `rules` that this peer's weights lack: of bodies alone."""
        is_body = isinstance(peer, PreTrainedModel) and peer.base_model is peer
        return f"{peer.base_model_prefix}." if is_body else ""

    def guess(self, shapes: Mapping[str, torch.Size]) -> nn.Module | None:
        """The peer whose weights have these names and shapes, for files that have no configuration beside them; None
        if they are of another architecture. It may be called under the meta device."""
        return None

    def bound_rules(self, config: PreTrainedConfig, peer: Peer, model_class: type[PreTrainedModel]) -> list[Rule]:
        """`rules` with the names that the weights of these two models have."""
        is_body = model_class.__name__.endswith("Model")
        prefix = f"{model_class.base_model_prefix}." if is_body else ""
        return [rule.without(prefix, self.prefix(peer)) for rule in self.rules(config, peer)]


@cache
def all_sources() -> list[Source]:
    """Every architecture that is known, of the files in `sources`."""
    names = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    modules = [importlib.import_module(f"{sources.__name__}.{name}") for name in names]
    return [source for module in modules for source in getattr(module, "SOURCES", [])]


def source_of(peer: Peer) -> Source:
    """The architecture of another library's model.

    Raises:
        ValueError: it is not known here.
    """
    library, name = type(peer).__module__.partition(".")[0], type(peer).__name__
    for source in all_sources():
        if source.library == library and name in source.peers:
            return source
    known = {each: sorted(name for s in all_sources() if s.library == each for name in s.peers) for each in LIBRARIES}
    listed = "; ".join(f"of {each} {', '.join(names)}" for each, names in known.items())
    raise ValueError(f"model must be one {listed}, got {name}")


# Fields that say how a model is trained or initialised, not what it computes.
_TRAINING_FIELDS = {
    *("initializer_range", "init_std", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
    *("dropout", "attention_dropout", "activation_dropout", "label_smoothing", "learn_cls_mean_weight"),
    *("patch_dropout_prob", "token_labeling_weight"),
    *("distillation_type", "distillation_alpha", "distillation_temperature", "apply_layernorm", "use_cache"),
}
# What a field means where None stands for a default, or where two values mean the same.
_MEANINGS = {
    "pooling_norm": "norm_position",
    "position_embedding": "position_embeddings",
    "position_embedding_on_prefix": "prefix_positions",
    "rope_theta": "rope_base",
    "position_grid_size": "position_grid",
    "image_size": "image_shape",
    "patch_size": "patch_shape",
    "pooling": "poolings",
}


def meaning(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what the configuration says of the function that its models compute, by field."""
    found = {}
    for name in type(config).__annotations__:
        if name in _TRAINING_FIELDS or name.startswith("_"):
            continue
        value = getattr(config, _MEANINGS.get(name, name), getattr(config, name, None))
        if name == "layer_scale_init_value":
            value = None if value is None else "a number"
        if name == "position_embedding" and isinstance(value, tuple):
            value = tuple(sorted(value))
        found[name] = tuple(value) if isinstance(value, list) else value
    if {"rope_axial", "rope_mixed"} & set(found.get("position_embedding") or ()):
        found["position_grid_size"] = config.position_grid_size and tuple(config.position_grid_size)
    return {name: value for name, value in found.items() if _matters(name, config)}


def _matters(name: str, config: PreTrainedConfig) -> bool:
    """Whether the other fields let this one say anything."""
    positions = getattr(config, "position_embeddings", (getattr(config, "position_embedding", None),))
    needs = {
        "cls_mean_weight": "cls_mean" in getattr(config, "poolings", ()),
        "key_bias": getattr(config, "qkv_bias", True),
        "registers_first": getattr(config, "num_register_tokens", 0) > 0,
        "position_grid_size": any(name.startswith(("sincos", "rope")) for name in positions if name),
        "rope_theta": bool({"rope_2d", "rope_axial"} & set(positions)),
        "rope_grid_offset": "rope_axial" in positions,
        "max_position_embeddings": "learned" in positions,
        "relative_attention_num_buckets": "relative" in positions,
        "relative_attention_max_distance": "relative" in positions,
    }
    return needs.get(name, True)


__all__ = ["LIBRARIES", "Source", "all_sources", "meaning", "source_of"]
