"""The verb `cost`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_vit.cli.app import app, size
from hf_vit.files import check_model_source


@app.command()
def cost(
    model: Annotated[
        str,
        typer.Argument(
            help="A Vision Transformer, encoder-decoder or detector of ours: its folder, id, or a variant, as "
            "vit_small_patch16_224."
        ),
    ],
    image_size: Annotated[
        str | None, typer.Option(help="Pixels: a side, or HEIGHTxWIDTH; the model's own if not.")
    ] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels, likewise.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, or pairs of texts.")] = 1,
    memory: Annotated[str | None, typer.Option(help="What there is, for instance 24GiB: say what fits.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Of a training step, not of inference.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")] = "float32",
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    attn_implementation: Annotated[str, typer.Option(help="eager or sdpa.")] = "sdpa",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute each layer again in the backward pass.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd_momentum or sgd.")] = "adamw",
    source_tokens: Annotated[int, typer.Option(min=1, help="Of each text, for an encoder-decoder.")] = 128,
    target_tokens: Annotated[int, typer.Option(min=1, help="Likewise.")] = 128,
    chart: Annotated[
        Path | None, typer.Option(help="Draw cost by image size, and by depth and width, as this PNG.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, memory in bytes.")] = False,
) -> None:
    """Say what a model costs: parameters, FLOPs and memory, and what fits. Runs no code of the model."""
    from hf_vit.cost import Setup, as_text, forecast, memory_bytes, model_config

    check_model_source("model", model)
    limit = None if memory is None else memory_bytes(memory)
    setup = Setup(
        batch_size,
        training,
        dtype,
        mixed_precision,
        attn_implementation,
        gradient_checkpointing,
        optimizer,
        source_tokens,
        target_tokens,
    )
    sizes = {"image_size": size("image-size", image_size), "patch_size": size("patch-size", patch_size)}
    config = model_config(model, revision, **{name: pair for name, pair in sizes.items() if pair is not None})
    result = forecast(config, setup, limit)
    if chart is not None:
        from hf_vit.cost.chart import draw_chart

        draw_chart(config, setup, chart)
    print(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))
