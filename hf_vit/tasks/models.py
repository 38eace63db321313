"""Parts shared by the tasks' builders of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from transformers import PreTrainedConfig

from hf_vit.config import closest
from hf_vit.conversion.cached import converted
from hf_vit.files import check_model_source
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig
from hf_vit.models.configuration_hf_vit import HfViTConfig


class CheckpointArguments(Protocol):
    """Arguments that name a checkpoint to start from."""

    model_name_or_path: str | None
    model_revision: str | None
    convert: bool


def checkpoint(arguments: CheckpointArguments) -> tuple[str, str | None]:
    """The name or folder to load from, and its revision: with `--convert` those of the converted checkpoint, which one
    process of each machine makes.

    Raises:
        ValueError: there is no such folder, or the checkpoint cannot be converted.
    """
    name = arguments.model_name_or_path
    if name is None:
        raise ValueError("--model_name_or_path is required")
    check_model_source("--model_name_or_path", name)
    if not arguments.convert:
        if Path(name).is_file():
            raise ValueError(
                f"--model_name_or_path must be a folder or an id on the Hub, got the file {name!r}; with --convert a "
                "file of weights becomes one"
            )
        return name, arguments.model_revision
    with PartialState().local_main_process_first():
        return converted(name, arguments.model_revision)


def check_convert(arguments: CheckpointArguments) -> None:
    """Raises `ValueError` for `--convert` without a checkpoint."""
    if arguments.convert and arguments.model_name_or_path is None:
        raise ValueError("--convert goes with --model_name_or_path, whose checkpoint it converts")


def check_fields(
    fields: dict[str, Any],
    config: PreTrainedConfig,
    is_checkpoint: bool = False,
    argument: str = "config_overrides",
) -> None:
    """Raises `ValueError` for the first of the fields, given by an argument, that the config has not; of a checkpoint,
    it says whether `--convert` would give it the field."""
    unknown = [name for name in fields if not hasattr(config, name)]
    if unknown:
        hint = closest(unknown[0], list(config.to_dict()))
        own = next((each for each in (HfViTConfig, HfTransformerConfig) if hasattr(each, unknown[0])), None)
        if is_checkpoint and own is not None and type(config) not in (HfViTConfig, HfTransformerConfig):
            hint = f"with --convert the model becomes a {own.model_type}, which may have it"
        raise ValueError(f"--{argument}: {config.model_type} has no field {unknown[0]!r}; {hint}")
