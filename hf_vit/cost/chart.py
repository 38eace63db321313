"""A picture of what a model costs by the size of its images, and by its depth and width."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig

from hf_vit.cost.forecast import Forecast, forecast
from hf_vit.cost.memory import Setup
from hf_vit.extras import extra
from hf_vit.models.configuration_hf_vit import HfViTConfig

_COLOURS = {"eager": "#D55E00", "sdpa": "#0072B2"}


def draw_chart(config: PreTrainedConfig, setup: Setup, path: Path) -> None:
    """Write a PNG: FLOPs of a step and peak memory, by eager attention and SDPA, over the side of square images, and
    the FLOPs over depth and width, where each line is a width.

    Args:
        config: of a Vision Transformer.
        setup: how it is run.
        path: of the picture.

    Raises:
        ValueError: if it is another model, or the path is no PNG.
    """
    if not isinstance(config, HfViTConfig):
        raise ValueError(f"a chart needs a Vision Transformer, got model_type {config.model_type!r}")
    if path.suffix.lower() != ".png":
        raise ValueError(f"chart must be a path that ends with .png, got {path}")
    with extra("hub"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained", dpi=120)
    of_flops, of_memory, of_shape = figure.subplots(1, 3)
    step = math.lcm(*config.patch_shape)
    sides = [step * max(1, round(side / step)) for side in range(128, 1025, 64)]
    for name, colour in _COLOURS.items():
        by_side = [_of(config, replace(setup, attn_implementation=name), image_size=side) for side in sides]
        of_memory.plot(sides, [each.memory.peak / 2**30 for each in by_side], color=colour, marker=".", label=name)
    of_flops.plot(sides, [2 * each.step_macs / 1e9 for each in by_side], color="#202124", marker=".")
    of_memory.legend(frameon=False)
    of_memory.set(title="Peak memory", xlabel="side of the image (pixels)", ylabel="GiB")
    of_flops.set(title="Work", xlabel="side of the image (pixels)", ylabel="GFLOPs a step")
    heads, depths = config.hidden_size // config.num_attention_heads, (4, 8, 12, 16, 24)
    for factor in (0.5, 1, 2):
        width = max(1, round(config.num_attention_heads * factor)) * heads
        shape = {"hidden_size": width, "num_attention_heads": width // heads}
        shape["intermediate_size"] = round(config.intermediate_size * width / config.hidden_size)
        flops = [2 * _of(config, setup, num_hidden_layers=depth, **shape).step_macs / 1e9 for depth in depths]
        of_shape.plot(depths, flops, marker=".", label=f"width {width}")
    of_shape.legend(frameon=False)
    of_shape.set(title="Depth and width", xlabel="layers", ylabel="GFLOPs a step")
    for axes in (of_flops, of_memory, of_shape):
        axes.set_ylim(bottom=0)
        axes.grid(color="#E3E5E8")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _of(config: HfViTConfig, setup: Setup, **fields: int) -> Forecast:
    # A schedule of tokens is for as many patches and layers as there are.
    whole = {"token_merging_r": 0, "token_pruning_keep_rate": 1.0, "out_features": None, "out_indices": None}
    return forecast(HfViTConfig.from_dict({**config.to_dict(), **whole, "position_grid_size": None, **fields}), setup)
