"""Models of timm that are made by name, and what a checkpoint of timm says of itself."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from hf_vit.extras import extra


def make_timm_model(name: str, options: dict[str, Any]) -> nn.Module:
    """A model of timm by its architecture's name, or `local-dir:FOLDER` or `hf-hub:ID`; `model_args`
    of it are the options, as timm saves them.

    Raises:
        ValueError: timm has no such architecture, or the options contradict each other.
    """
    with extra("convert"):
        import timm
    try:
        peer = timm.create_model(name, pretrained=False, **options)
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


def save_timm_model(folder: Path, peer: nn.Module, data_config: dict[str, Any], labels: list[str] | None) -> None:
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
    save_for_hf(peer, folder, model_config=facts, model_args=peer.model_args, safe_serialization=True)


def nearest_names(name: str) -> str:
    """The end of a message about a name that timm does not know."""
    with extra("convert"):
        import timm
    found = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
    return f", nearest: {', '.join(found)}" if found else ""


__all__ = ["check_timm_name", "make_timm_model", "nearest_names", "save_timm_model"]
