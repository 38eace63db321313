"""Parts shared by the tasks' builders of models."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from hf_vit.config import closest


def check_fields(fields: dict[str, Any], config: PreTrainedConfig) -> None:
    """Raises `ValueError` for the first of the fields that the config has not."""
    unknown = [name for name in fields if not hasattr(config, name)]
    if unknown:
        hint = closest(unknown[0], list(config.to_dict()))
        raise ValueError(f"--config_overrides: {config.model_type} has no field {unknown[0]!r}; {hint}")
