"""The program that `measure` runs: reads a request from standard input and answers with JSON on standard output."""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

MAX_SIDE = 32  # more cells along a map's side than this cannot be told apart in a figure
MAX_LINES = 5  # rows and columns of patches whose similarity to all others is kept
MAX_HEADS = 16
# Poolings whose weights the image decides.
SEEING_POOLINGS = {"max", "weighted", "attention"}


def output_of(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


def measure_image_classification(repo_id: str, pictures: list[str]) -> dict:
    processor = AutoImageProcessor.from_pretrained(repo_id)
    # The counter sees every product of the eager attention, whatever kernel a device would use.
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
        measured["positions"] = positions_of(model)
    if hasattr(model.config, "num_prefix_tokens") and pictures:
        images = [Image.open(Path(repo_id, name)) for name in pictures]
        attention = attention_of(model, processor(images, return_tensors="pt")["pixel_values"])
        measured["attention"] = [
            {"file": name, "maps": {title: maps[i] for title, maps in attention.items()}}
            for i, name in enumerate(pictures)
        ]
    return measured


def attention_of(model, pixel_values: torch.Tensor) -> dict[str, list]:
    """Maps (batch, rows, columns) by their titles; 1 is an even share of the patches."""
    from hf_vit import explain as interpret

    maps, rollout = interpret.attention_maps(model, pixel_values)
    num_layers, grid_size = maps.shape[1], maps.shape[-2:]
    layers = sorted({0, num_layers // 2, num_layers - 1})
    shown = {f"layer {i + 1}": maps[:, i].mean(1) for i in layers}
    shown["all layers"] = rollout
    if SEEING_POOLINGS & set(model.config.poolings):
        weights = interpret.pooling_weights(model, model.base_model(pixel_values).last_hidden_state)
        shown["pooling"] = weights[:, model.config.num_prefix_tokens :].unflatten(1, grid_size)
    return {title: numbers(maps * grid_size.numel()) for title, maps in shown.items()}


def positions_of(model) -> dict:
    """What the positions say about each other: a `kind` and its `maps` (count, height, width)."""
    from hf_vit import explain as interpret

    scheme, grid_size = model.config.position_embedding, list(model.config.grid_size)
    if scheme == "none":
        return {}
    if scheme == "relative_bias":
        bias = interpret.relative_position_bias(model)[:MAX_HEADS]
        return {"kind": "bias", "grid_size": grid_size, "maps": numbers(bias)}
    if scheme == "rope_2d":
        return {"kind": "kernel", "grid_size": grid_size, "maps": numbers(interpret.rotary_kernel(model)[None])}
    rows, columns = (evenly_spaced(length) for length in grid_size)
    maps = interpret.position_similarity(model)[rows][:, columns].flatten(0, 1)
    return {"kind": "similarity", "grid_size": grid_size, "rows": rows, "columns": columns, "maps": numbers(maps)}


def evenly_spaced(length: int) -> list[int]:
    return torch.linspace(0, length - 1, min(length, MAX_LINES)).round().int().tolist()


def numbers(maps: torch.Tensor) -> list:
    """Maps (count, height, width) as lists of three significant digits, their larger sides averaged to `MAX_SIDE`."""
    size = [min(length, MAX_SIDE) for length in maps.shape[1:]]
    maps = torch.nn.functional.adaptive_avg_pool2d(maps.float(), size)
    return [[[float(f"{value:.3g}") for value in line] for line in grid] for grid in maps.tolist()]


def measure_translation(repo_id: str, texts: list[str]) -> dict:
    """The attention of the decoder's last layer to the source, mean over its heads: a row for each token written."""
    from hf_vit.models.pipeline_translation import target_tokenizer_of

    tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
    target_tokenizer = target_tokenizer_of(tokenizer)
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForSeq2SeqLM.from_pretrained(repo_id, **options).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        limits = {"num_beams": 1, "do_sample": False}
        outputs = model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_attentions=True,
            return_dict_in_generate=True,
            **limits,
        )
        maps = torch.stack([layers[-1][0, :, -1].mean(0) for layers in outputs.cross_attentions])  # (target, source)
        source, target = (
            [each.decode([token]).strip() or "␣" for token in ids.tolist()]
            for each, ids in ((tokenizer, inputs.input_ids[0]), (target_tokenizer, outputs.sequences[0, 1:]))
        )
        values = [[float(f"{value:.3g}") for value in line] for line in maps.tolist()]
        rows.append({"source": source, "target": target, "map": values})
    return {"cross_attention": rows}


TASKS = {"image_classification": measure_image_classification, "translation": measure_translation}

request = json.load(sys.stdin)
outputs = {code: output_of(code) for code in request["snippets"]}
# From here on the package may be known: the snippets have shown that they work without it.
sys.path.append(request["package_root"])
with contextlib.redirect_stdout(sys.stderr):
    measured = TASKS[request["task"]](request["repo_id"], request["pictures"])
print(json.dumps({"outputs": outputs, **measured}))
