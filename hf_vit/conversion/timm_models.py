"""Models of timm that are made by name, and what a checkpoint of timm says of itself."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_vit.conversion.rules import Peer
from hf_vit.extras import extra

_INITIALISATIONS = ("add_", "clamp_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")


class Skeleton(TorchFunctionMode):
    """Where models are made on the meta device: without the initialisation of weights that have no values, which takes
    timm as long as it takes to read those of a ViT-L."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("meta")

    def __enter__(self) -> Any:
        self.device.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.device.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensor = args[0] if args else None
        is_initialised = getattr(func, "__name__", "") in _INITIALISATIONS
        if is_initialised and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **(kwargs or {}))


def make_timm_model(name: str, options: dict[str, Any]) -> nn.Module:
    """A model of timm by its architecture's name, or `local-dir:FOLDER` or `hf-hub:ID`; `model_args`
    of it are the options, as timm saves them.

    Raises:
        ValueError: timm has no such architecture, or the options contradict each other.
    """
    with extra("convert"):
        import timm
    try:
        peer: Peer = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"timm cannot make a {name} with {options}: {error or type(error).__name__}") from error
    peer.model_args = options
    return peer


def check_timm_name(name: str) -> None:
    """Raises `ValueError` if timm has no architecture of this name; the message gives the nearest."""
    with extra("convert"):
        import timm
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no architecture {name!r}{nearest_names(name)}")


def save_timm_model(folder: Path, peer: Peer, data_config: dict[str, Any], labels: list[str] | None) -> None:
    """A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        folder: where to.
        peer: as [`make_timm_model`] makes it, with its weights.
        data_config: what timm's evaluation does with images.
        labels: names of the classes, if the model has any.
    """
    from timm.models import save_for_hf

    architecture = peer.pretrained_cfg["architecture"]
    peer.pretrained_cfg = {**data_config, "architecture": architecture, "num_classes": peer.num_classes}
    facts = {"label_names": labels} if labels else {}
    save_for_hf(peer, str(folder), model_config=facts, model_args=peer.model_args, safe_serialization=True)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes")  # said beside them too; transformers, which loads timm's, gives it itself
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def nearest_names(name: str) -> str:
    """The end of a message about a name that timm does not know."""
    with extra("convert"):
        import timm
    found = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
    return f", nearest: {', '.join(found)}" if found else ""


__all__ = ["Skeleton", "check_timm_name", "make_timm_model", "nearest_names", "save_timm_model"]
