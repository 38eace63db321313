"""Conversion of checkpoints on loading: tables of positions follow the model's grid, old names become today's."""

from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from .position_encoding import resample_table

_TABLES = (
    "position_embedding.grid",
    "position_embedding.rows",
    "position_embedding.columns",
    "relative_position_bias.grid",
)
# A name that ends with the class head's is taken for it by what selects modules by the ends of their names (peft).
_OLD_HEAD, _HEAD = "distillation_classifier", "distillation_head"


class _Keep(ConversionOps):
    """On saving, a table stays as it is."""

    def convert(self, input_dict: Any, source_patterns: Any, target_patterns: Any, **kwargs: Any) -> Any:
        return input_dict


class _ResampleToModel(ConversionOps):
    """On loading, a table of shape (rows, columns, size) takes the rows and columns it has in the model."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: Any,
        source_patterns: Any,
        target_patterns: Any,
        *,
        model: Any = None,
        full_layer_name: Any = None,
        **kwargs: Any,
    ) -> Any:
        ((name, tables),) = input_dict.items()
        rows, columns, _ = model.get_parameter(full_layer_name).shape
        return {name: resample_table(tables[0], (rows, columns))}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Keep()


class _RenameOnLoading(WeightRenaming):
    """A renaming that saving does not undo."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming(_HEAD, _HEAD)


def checkpoint_conversions() -> list[WeightConverter | WeightRenaming]:
    """Conversions by `from_pretrained` of a checkpoint of another image size (`image_size=...`) or with old names."""
    tables = [WeightConverter(name, name, operations=[_ResampleToModel()]) for name in _TABLES]
    return [*tables, _RenameOnLoading(_OLD_HEAD, _HEAD)]


class OwnConversionsMixin:
    """A model that is loaded by the conversions of its own code. transformers keeps them by `model_type`, for all
    versions of the code alike that a process may have imported from folders."""

    config_class: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        model: Any = super()
        model.__init__(config, *args, **kwargs)
        register_checkpoint_conversion_mapping(config.model_type, checkpoint_conversions(), overwrite=True)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedModel.from_pretrained`."""
        others = get_checkpoint_conversion_mapping(cls.config_class.model_type)
        model: Any = super()
        try:
            return model.from_pretrained(*args, **kwargs)
        finally:
            if others is not None:  # older code registered its own once, when it was imported
                register_checkpoint_conversion_mapping(cls.config_class.model_type, others, overwrite=True)


def rename_heads(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
    """Give the second head of an old state dict, in place, today's name: a hook of `load_state_dict`."""
    for name in [name for name in state_dict if name.startswith(f"{prefix}{_OLD_HEAD}.")]:
        state_dict[name.replace(_OLD_HEAD, _HEAD)] = state_dict.pop(name)


__all__ = ["OwnConversionsMixin", "checkpoint_conversions", "rename_heads"]
