"""Checkpoints of timm and transformers, read without filling memory more than their weights do."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import cached_file

from hf_vit.conversion.models import quiet
from hf_vit.conversion.processors import timm_processor
from hf_vit.conversion.rules import Peer
from hf_vit.conversion.source import all_sources
from hf_vit.conversion.timm_models import Skeleton, check_timm_name, make_timm_model, nearest_names
from hf_vit.extras import extra
from hf_vit.models.modeling_hf_transformer import HfTransformerForConditionalGeneration
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel
from hf_vit.text.tokenization import load_tokenizers
from hf_vit.unasked import unasked

OWN_CLASSES = (HfViTModel, HfViTForImageClassification, HfTransformerForConditionalGeneration)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What the training programs of DeiT, CaiT and timm call the weights in their checkpoints.
_WEIGHTS_OF_RUN = ("model", "state_dict")


@dataclass
class Checkpoint:
    """A model of another library.

    Args:
        peer: the model; on the meta device, if it was not transformers that read the weights.
        weights: by the peer's names.
        processor: its image processor or tokenizer.
        labels: names of its classes, where the model's configuration has none.
        faults: weights that its own library misses, does not use, or finds of another shape, by these kinds.
    """

    peer: Peer
    weights: dict[str, torch.Tensor]
    processor: Any
    labels: list[str] | None = None
    faults: dict[str, list[str]] = field(default_factory=dict)


@unasked()
def read_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Read what a folder, a file of weights or a repository of the Hub holds.

    Raises:
        ValueError: there is no such source, it is of an architecture that is not known here, its files are damaged or
            hold something else than weights, or its configuration contradicts itself.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path)
    try:
        facts, _ = PreTrainedConfig.get_config_dict(_hub_name(source), revision=revision)
        if "architecture" in facts:
            check_timm_name(facts["architecture"])
            return _read_timm(source, revision)
        return _read_transformers(source, facts, revision)
    except OSError as error:
        hint = "" if path.is_dir() else _nearest_of_timm(source)
        raise ValueError(
            f"source must be a folder or an id on the Hub with all its files, got {source!r}{hint}: {error}"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"source: the weights of {source!r} cannot be read: {error}") from error


@unasked()
def read_own(source: str, revision: str | None = None) -> Checkpoint | None:
    """A model of this package in a folder or on the Hub; None if the source is another's. No code of it runs."""
    own_class = _own_class(source, revision)
    if own_class is None:
        return None
    is_text = own_class.main_input_name == "input_ids"
    processor = _tokenizers(source, revision) if is_text else _image_processor(source, revision)
    with quiet():
        model = own_class.from_pretrained(source, revision=revision).eval()
    return Checkpoint(model, {}, processor)


def is_own(source: str, revision: str | None = None) -> bool:
    """Whether a folder or a repository of the Hub holds a model of this package."""
    return _own_class(source, revision) is not None


def _own_class(source: str, revision: str | None) -> Any:
    if Path(source).is_file():
        return None
    try:
        facts, _ = PreTrainedConfig.get_config_dict(_hub_name(source), revision=revision)
    except OSError:
        return None
    classes = {each.__name__: each for each in OWN_CLASSES}
    return classes.get(next(iter(facts.get("architectures") or ()), ""))


def _hub_name(source: str) -> str:
    """The repository of a checkpoint that is named as timm names it: `vit_tiny_patch16_224.augreg_in21k`."""
    if "/" in source or Path(source).exists():
        return source
    try:
        import timm
    except ImportError:
        return source
    configuration: Any = timm.models.get_pretrained_cfg(source) if timm.is_model(source.partition(".")[0]) else None
    repository = configuration.hf_hub_id if configuration else None
    return source if not repository else f"{repository}{configuration.architecture}.{configuration.tag}".rstrip(".")


def _nearest_of_timm(source: str) -> str:
    owner, _, name = source.rpartition("/")
    if owner not in ("", "timm"):
        return ""
    try:
        return nearest_names(name)
    except ImportError:
        return ""


# --- transformers ----------------------------------------------------------------------------------------------------


def _read_transformers(source: str, facts: dict[str, Any], revision: str | None) -> Checkpoint:
    name = next(iter(facts.get("architectures") or ()), None)
    known = {
        their: each for each in all_sources() if each.library == "transformers" for their in (*each.peers, *each.loads)
    }
    if name not in known:
        raise ValueError(f"source must be of timm or of transformers' {', '.join(sorted(known))}, got {name!r}")
    loads = known[name].loads.get(name, name)
    peer_class = getattr(transformers, loads)
    is_text = not hasattr(peer_class, "main_input_name") or peer_class.main_input_name == "input_ids"
    processor = _tokenizers(source, revision) if is_text else _image_processor(source, revision)
    peer, info = _load(peer_class, source, revision)
    if info["missing_keys"] and all(name.startswith("pooler.") for name in info["missing_keys"]):
        peer, info = _load(peer_class, source, revision, add_pooling_layer=False)
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unused": sorted(info["unexpected_keys"]),
        "of another shape": [f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in sorted(info["mismatched_keys"])],
    }
    if not is_text and getattr(peer.config, "num_channels", None) == 3:
        processor.do_convert_rgb = True
    return Checkpoint(peer, dict(peer.state_dict()), processor, faults=faults)


def _load(peer_class: Any, source: str, revision: str | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        return peer_class.from_pretrained(source, revision=revision, **options)


def _tokenizers(source: str, revision: str | None) -> Any:
    try:
        cached_file(source, "tokenizer_config.json", revision=revision)
    except OSError as error:  # without it there would be an empty tokenizer
        raise ValueError(f"source must have a tokenizer beside the model, got {source!r}: {error}") from error
    return load_tokenizers(source, revision=revision)


def _image_processor(source: str, revision: str | None) -> Any:
    return AutoImageProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)


# --- timm ------------------------------------------------------------------------------------------------------------


def _read_timm(source: str, revision: str | None) -> Checkpoint:
    name = _hub_name(source)
    location = f"local-dir:{name}" if Path(name).is_dir() else f"hf-hub:{name}" + (f"@{revision}" if revision else "")
    with Skeleton():
        peer: Any = make_timm_model(location, {})
    weights = _weights_of(lambda file: cached_file(name, file, revision=revision), name)
    labels = (peer.pretrained_cfg or {}).get("label_names")
    if labels and len(labels) != peer.num_classes:
        raise ValueError(
            f"label_names of the checkpoint must name its {peer.num_classes} classes, got {len(labels)} names"
        )
    return Checkpoint(peer, weights, _processor_of(peer), labels or None)


def _processor_of(peer: Peer) -> Any:
    with extra("convert"):
        import timm

    given: dict[str, Any] = {"in_chans": peer.patch_embed.proj.in_channels} if hasattr(peer, "patch_embed") else {}
    if given and not getattr(peer, "dynamic_img_size", False) and hasattr(peer.patch_embed, "img_size"):
        given = {"input_size": (given["in_chans"], *peer.patch_embed.img_size)}
    return timm_processor(timm.data.resolve_model_data_config(peer, args=given))


def _weights_of(locate: Callable[[str], str | None], source: str) -> dict[str, torch.Tensor]:
    for file in _WEIGHT_FILES:
        try:
            path = locate(file)
        except OSError:
            continue
        if path is not None:
            return read_weights(Path(path))
    raise OSError(f"{source!r} has none of {', '.join(_WEIGHT_FILES)}")


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Checkpoint:
    weights = read_weights(path)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for source in all_sources():
        with Skeleton():
            peer = source.guess(shapes)
        if peer is not None:
            return Checkpoint(peer, weights, _processor_of(peer))
    first = ", ".join(sorted(weights)[:3])
    raise ValueError(f"source: the weights in {str(path)!r} are of no architecture that is known here ({first}, ...)")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, which are read from it when their values are asked for. Nothing but tensors is unpickled.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
        with torch.serialization.safe_globals([Namespace]):  # what a run was started with, beside its weights
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(f"source: the weights in {str(path)!r} cannot be read: {error}") from error
    for name in _WEIGHTS_OF_RUN:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"source: {str(path)!r} must hold named tensors, found {type(content).__name__}")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        found = type(content[others[0]]).__name__
        raise ValueError(f"source: {str(path)!r} must hold named tensors alone, found {others[0]!r}, a {found}")
    names = {name: name.removeprefix("module.") for name in content}  # of a model in several processes
    twice = [name for name, own in names.items() if name != own and own in content]
    if twice:
        raise ValueError(f"source: {str(path)!r} holds {twice[0]!r} and {names[twice[0]]!r}: it must be one of them")
    return {names[name]: value.detach() for name, value in content.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"  # torch's format since 1.6, the one that can be mapped


__all__ = ["Checkpoint", "is_own", "read_checkpoint", "read_own", "read_weights"]
