"""Measure what the card of an image classifier tells of its cost, its attention and its positions.

Executed in a process of its own, see `hf_vit.cards.measure`: the package is imported only once the folder's code has
been loaded, for it would take its place.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

MAX_SIDE = 32  # more cells along a map's side than this cannot be told apart in a figure
MAX_LINES = 5  # rows and columns of patches whose similarity to all others is kept
MAX_HEADS = 16
# Poolings whose weights the image decides.
SEEING_POOLINGS = {"max", "weighted", "attention"}


def measure(repo_id: str, attended: list[str]) -> dict:
    """The fields of the task's `record.Measurement`; `attended` names images in the model's folder."""
    processor = AutoImageProcessor.from_pretrained(repo_id, trust_remote_code=True)
    # The counter sees every matmul of the eager attention, whatever kernel a device would use.
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForImageClassification.from_pretrained(repo_id, **options).eval()
    model.requires_grad_(False)  # the counter fails on parameters that hooks cannot be put on
    pixel_values = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]  # (1, C, H, W)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values)
    measured = {"input_shape": list(pixel_values.shape[1:]), "flops": counter.get_total_flops()}
    if hasattr(model.config, "num_prefix_tokens"):
        rows, columns = model.config.grid_size
        measured.update(num_patches=rows * columns, num_prefix_tokens=model.config.num_prefix_tokens)
        if positions := positions_of(model):
            measured["positions"] = positions
    if hasattr(model.config, "num_prefix_tokens") and attended:
        images = [Image.open(Path(repo_id, name)) for name in attended]
        attention = attention_of(model, processor(images, return_tensors="pt")["pixel_values"])
        measured["attention"] = [
            {"file": name, "maps": {title: maps[i] for title, maps in attention.items()}}
            for i, name in enumerate(attended)
        ]
    return measured


def attention_of(model: Any, pixel_values: torch.Tensor) -> dict[str, list]:
    """Maps (batch, rows, columns) by their titles; 1 is an even share of the patches."""
    from hf_vit import explain as interpret

    maps, rollout = interpret.attention_maps(model, pixel_values)
    num_layers, grid_size = maps.shape[1], maps.shape[-2:]
    layers = sorted({0, num_layers // 2, num_layers - 1})
    shown = {f"layer {i + 1}": maps[:, i].mean(1) for i in layers}
    shown["all layers"] = rollout
    if SEEING_POOLINGS & set(model.config.poolings):
        weights = interpret.pooling_weights(
            model, interpret.of_all_tokens(model.base_model, model.base_model(pixel_values))
        )
        shown["pooling"] = weights[:, model.config.num_prefix_tokens :].unflatten(1, grid_size)
    return {title: numbers(maps * grid_size.numel()) for title, maps in shown.items()}


def positions_of(model: Any) -> dict | None:
    """Relations between the positions: a `kind` and its `maps` (count, height, width); None if there are none, or each
    layer has its own."""
    from hf_vit import explain as interpret

    schemes, grid_size = model.config.position_embeddings, list(model.config.grid_size)
    if "relative_bias" in schemes:
        bias = interpret.relative_position_bias(model)[:MAX_HEADS]
        return {"kind": "bias", "grid_size": grid_size, "maps": numbers(bias)}
    if {"rope_2d", "rope_axial"} & set(schemes):
        return {"kind": "kernel", "grid_size": grid_size, "maps": numbers(interpret.rotary_kernel(model)[None])}
    if model.config.absolute_position is None:
        return None
    rows, columns = (evenly_spaced(length) for length in grid_size)
    maps = interpret.position_similarity(model)[rows][:, columns].flatten(0, 1)
    return {"kind": "similarity", "grid_size": grid_size, "rows": rows, "columns": columns, "maps": numbers(maps)}


def evenly_spaced(length: int) -> list[int]:
    return torch.linspace(0, length - 1, min(length, MAX_LINES)).round().int().tolist()


def numbers(maps: torch.Tensor) -> list:
    """Maps (count, height, width) as lists of three significant digits, their larger sides averaged to `MAX_SIDE`."""
    height, width = (min(length, MAX_SIDE) for length in maps.shape[1:])
    maps = torch.nn.functional.adaptive_avg_pool2d(maps.float(), (height, width))
    return [[[float(f"{value:.3g}") for value in line] for line in grid] for grid in maps.tolist()]
