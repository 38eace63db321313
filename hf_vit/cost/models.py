"""The configuration that a name stands for."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from transformers import PreTrainedConfig

from hf_vit.models.configuration_hf_detr import HfDetrConfig
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.vit_variants import variant_names

_CONFIGS: dict[str, Any] = {each.model_type: each for each in (HfViTConfig, HfTransformerConfig, HfDetrConfig)}
_LOOKS_LIKE_VARIANT = re.compile(r"[a-z0-9_]*_[a-z0-9_]+")


def model_config(model: str, revision: str | None = None, **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of a model by its folder, its id on the Hub or a variant's name. Runs no code of it.

    Args:
        model: folder, id or name.
        revision: branch, tag or commit of an id.
        overrides: fields that take another value; with another `image_size` the positions follow.

    Raises:
        ValueError: if there is no such variant (the nearest is named) or folder, it is no Vision Transformer,
            encoder-decoder or detector of ours, or the values do not fit it.
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
    config_class = _CONFIGS.get(fields.get("model_type", ""))
    if config_class is None:
        raise ValueError(
            f"model must be of model_type {', '.join(_CONFIGS)}, {model!r} is {fields.get('model_type')!r}"
        )
    if config_class is HfDetrConfig and overrides:
        fields["backbone_config"] = HfViTConfig.from_dict(fields["backbone_config"], **overrides)
        overrides = {}
    if config_class is HfTransformerConfig and overrides:
        raise ValueError(f"{', '.join(overrides)} must not be given for {model!r}, which takes no images")
    config = config_class.from_dict(fields, **overrides)
    config.check()
    return config
