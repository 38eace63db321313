"""Learnt tables of positions, brought to the grid of the model that loads them."""

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter

from .position_encoding import resample_table

_TABLES = (
    "position_embedding.grid",
    "position_embedding.rows",
    "position_embedding.columns",
    "relative_position_bias.grid",
)


class _Keep(ConversionOps):
    """On saving, a table stays as it is."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return input_dict


class _ResampleToModel(ConversionOps):
    """On loading, a table of shape (rows, columns, size) takes the rows and columns it has in the model."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, *, model, full_layer_name, **kwargs):
        ((name, tables),) = input_dict.items()
        rows, columns, _ = model.get_parameter(full_layer_name).shape
        return {name: resample_table(tables[0], (rows, columns))}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Keep()


def grid_converters() -> list[WeightConverter]:
    """What `from_pretrained(folder, image_size=...)` does to a checkpoint of another image size."""
    return [WeightConverter(name, name, operations=[_ResampleToModel()]) for name in _TABLES]


__all__ = ["grid_converters"]
