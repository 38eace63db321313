"""Models of timm that are made by name, and what a checkpoint of timm says of itself."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from hf_vit.extras import extra


def make_timm_model(name: str, options: dict[str, Any]) -> nn.Module:
    """A model of timm by its architecture's name, or `local-dir:FOLDER` or `hf-hub:ID`, on the meta device;
    `model_args` of it are the options, as timm saves them.

    Raises:
        ValueError: timm has no such architecture, the nearest names are given; or the options contradict each other.
    """
    with extra("convert"):
        import timm
    is_location = ":" in name  # of a folder or a repository, whose configuration names the architecture
    if not is_location and not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no architecture {name!r}{nearest_names(name)}")
    try:
        with torch.device("meta"):
            peer = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"timm cannot make a {name} with {options}: {error or type(error).__name__}") from error
    peer.model_args = options
    return peer


def nearest_names(name: str) -> str:
    """The end of a message about a name that timm does not know."""
    with extra("convert"):
        import timm
    found = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
    return f", nearest: {', '.join(found)}" if found else ""


__all__ = ["make_timm_model", "nearest_names"]
