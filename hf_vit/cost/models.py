"""The configuration that a name stands for."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from transformers import PreTrainedConfig

from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.vit_variants import variant_names

_LOOKS_LIKE_VARIANT = re.compile(r"[a-z0-9_]*_[a-z0-9_]+")


def vit_config(model: str, revision: str | None = None, **overrides: Any) -> HfViTConfig:
    """Return the configuration of a model by its folder, its id on the Hub or a variant's name. Runs no code of it.

    Args:
        model: folder, id or name.
        revision: branch, tag or commit of an id.
        overrides: fields that take another value; with another `image_size` the positions follow.

    Raises:
        ValueError: if there is no such variant (the nearest is named) or folder, the model is no Vision Transformer of
            ours, or the values do not fit it.
    """
    if not os.path.isdir(model) and _LOOKS_LIKE_VARIANT.fullmatch(model):
        try:
            return HfViTConfig.from_variant(model, **overrides)
        except ValueError as error:
            if "variant" not in str(error):
                raise
            nearest = difflib.get_close_matches(model, variant_names(), n=1, cutoff=0.0)
            raise ValueError(f"there is no folder or variant {model!r}, nearest: {nearest[0]}") from error
    fields, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    if fields.get("model_type") != HfViTConfig.model_type:
        raise ValueError(
            f"model must be a Vision Transformer of model_type {HfViTConfig.model_type!r}, "
            f"{model!r} is {fields.get('model_type')!r}"
        )
    config = HfViTConfig.from_dict(fields, **overrides)
    config.check()
    return config
