"""Training of the Vision Transformer beside timm's and transformers': speed of a step, drop path, peak memory.

    python benchmarks/vit_training.py [--device cuda] [--rows step drop_path memory] [--output FILE]

A step is forward, backward and fused AdamW, measured in turns; medians are reported, and ratios above 1 say that ours
is the faster one: beside timm in fp32, and beside timm under autocast in bf16 for ours under autocast (`bf16
autocast`) and with its weights in bf16 (`bf16`). `drop_path` is beside ours without it. `memory` is the peak of a
step at 640 by 640 pixels as a share of the peers'. The exit status is 1 if a row is under its bar.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from report import write_report
from timing import CLOCKS, interleaved_medians, peak_bytes
from vit_peers import MODELS, logits_of, make_models

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.models.cpu_paths import PROCESSOR

SMALL = {"img_size": 32, "patch_size": 4, "depth": 9, "num_classes": 10}
STEPS = {  # name: timm's model, its options, batch size
    "ViT-Ti/16, 224": (MODELS["ViT-Ti/16"], {}, 8),
    "ViT-S/16, 224": (MODELS["ViT-S/16"], {}, 8),
    "32x32, patch 4, D 192, 9 layers": (MODELS["ViT-Ti/16"], SMALL, 64),
}
DROP_PATH_BARS = {0.3: 1.1, 0.6: 1.25}


def step_of(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: bool = False
) -> Callable[[], None]:
    """A training step as a function."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)
    device, dtype = images.device.type, next(model.parameters()).dtype
    images = images.to(dtype)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = logits_of(model, images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps_of(models: dict, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Steps of each model in fp32, under autocast, and of ours in bf16."""
    steps = {f"{name} fp32": step_of(copy.deepcopy(model), images, labels) for name, model in models.items()}
    for name, model in models.items():
        steps[f"{name} bf16 autocast"] = step_of(copy.deepcopy(model), images, labels, autocast=True)
    steps["ours bf16"] = step_of(copy.deepcopy(models["ours"]).bfloat16(), images, labels)
    steps["timm bf16"] = step_of(copy.deepcopy(models["timm"]).bfloat16(), images, labels)
    return steps


def same_gradients(ours: torch.nn.Module, peer: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise an error if the heads' gradients differ."""
    gradients = []
    for model, head in ((ours, "classifier"), (peer, "head")):
        torch.nn.functional.cross_entropy(logits_of(model, images), labels).backward()
        gradients.append(getattr(model, head).weight.grad)
        model.zero_grad()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def measure_step(name: str, arguments: argparse.Namespace) -> dict:
    model_name, options, batch_size = STEPS[name]
    batch_size = arguments.batch_size or batch_size
    models = make_models(model_name, device=arguments.device, **options)
    del models["transformers"]
    size = options.get("img_size", 224)
    images = torch.randn(batch_size, 3, size, size, device=arguments.device)
    labels = torch.arange(batch_size, device=arguments.device) % 10
    same_gradients(models["ours"], models["timm"], images, labels)
    steps = steps_of(models, images, labels)
    medians = interleaved_medians(steps, arguments.seconds, arguments.clock, arguments.at_least)
    row = {"row": "step", "model": name, "batch_size": batch_size}
    row |= {f"{key} ms": round(value * 1e3, 2) for key, value in medians.items()}
    peer = medians["timm bf16 autocast"]
    row["ratio fp32"] = round(medians["timm fp32"] / medians["ours fp32"], 3)
    return row | {f"ratio {k}": round(peer / medians[f"ours {k}"], 3) for k in ("bf16 autocast", "bf16")}


def measure_drop_path(arguments: argparse.Namespace) -> dict:
    """Ours at 32 pixels with several rates, for it must not compute what is dropped."""
    images = torch.randn(arguments.batch_size or 64, 3, 32, 32, device=arguments.device)
    labels = torch.arange(len(images), device=arguments.device) % 10
    steps = {}
    for rate in (0.0, *DROP_PATH_BARS):
        config = HfViTConfig(
            **{"image_size": 32, "patch_size": 4, "hidden_size": 192, "num_hidden_layers": 9, "num_labels": 10},
            **{"num_attention_heads": 3, "intermediate_size": 768, "drop_path_rate": rate},
        )
        steps[rate] = step_of(HfViTForImageClassification(config).to(arguments.device), images, labels)
    medians = interleaved_medians(steps, arguments.seconds, arguments.clock, arguments.at_least)
    row = {"row": "drop path"} | {f"{rate} ms": round(value * 1e3, 2) for rate, value in medians.items()}
    return row | {f"ratio {rate}": round(medians[0.0] / medians[rate], 3) for rate in DROP_PATH_BARS}


def measure_memory(arguments: argparse.Namespace, size: int = 640) -> dict:
    """Patch 16, 8 heads, D 512, 6 layers, batch 2."""
    options = {"img_size": size, "embed_dim": 512, "depth": 6, "num_heads": 8, "num_classes": 10}
    models = make_models(MODELS["ViT-Ti/16"], device=arguments.device, **options)
    images = torch.randn(2, 3, size, size, device=arguments.device)
    labels = torch.arange(2, device=arguments.device)
    peaks = {}
    for name, key, attention, autocast in (
        ("ours", "ours", "sdpa", True),
        ("ours fp32", "ours", "sdpa", False),
        ("transformers eager fp32", "transformers", "eager", False),
        ("transformers sdpa autocast", "transformers", "sdpa", True),
    ):
        models[key].set_attn_implementation(attention)
        step = step_of(models[key], images, labels, autocast)
        step()  # makes the optimizer's state, which is none of the step's
        peaks[name] = peak_bytes(step)
        models[key].zero_grad()
    row = {"row": "memory", "size": size} | {f"{name} bytes": value for name, value in peaks.items()}
    if any(value is None for value in peaks.values()):
        return row
    shares = {key: peaks["ours"] / peaks[f"transformers {key}"] for key in ("eager fp32", "sdpa autocast")}
    return row | {f"share of {key}": round(value, 3) for key, value in shares.items()}


def misses(row: dict) -> list[str]:
    """The bars under which a row is."""
    if row["row"] == "drop path":
        bars: dict[str, float] = {f"ratio {rate}": bar for rate, bar in DROP_PATH_BARS.items()}
    elif row["row"] == "memory":
        most = {"share of eager fp32": 0.16, "share of sdpa autocast": 0.6}
        return [key for key, bar in most.items() if row.get(key, 0) > bar]
    else:
        is_small, is_intel = "32x32" in row["model"], PROCESSOR == "intel"
        bars = dict.fromkeys(("ratio bf16 autocast", "ratio bf16"), (1.9 if is_intel else 1.5) if is_small else 1.3)
        bars["ratio fp32"] = 1.0 if is_intel else 1.3
    return [key for key, bar in bars.items() if row[key] < bar]


def main(arguments_given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["step", "drop_path", "memory"])
    parser.add_argument("--models", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--batch_size", type=int, help="of the steps (default: 8, and 64 at 32 pixels)")
    parser.add_argument("--memory_size", type=int, default=640, help="pixels of the images whose memory is measured")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each row (default: 6)")
    parser.add_argument("--at_least", type=int, default=5, help="rounds of each row at least (default: 5)")
    parser.add_argument("--num_threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args(arguments_given)
    torch.set_num_threads(arguments.num_threads or torch.get_num_threads())
    work = [partial(measure_step, name, arguments) for name in arguments.models if "step" in arguments.rows]
    work += [partial(measure_drop_path, arguments)] if "drop_path" in arguments.rows else []
    work += [partial(measure_memory, arguments, arguments.memory_size)] if "memory" in arguments.rows else []
    rows: list[dict] = []
    for measure in work:
        rows.append(measure())
        print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
        if arguments.output:
            facts = {"device": arguments.device, "clock": arguments.clock}
            write_report(arguments.output, rows, (torch, timm, transformers), **facts)
    under = [(row["row"], miss) for row in rows for miss in misses(row)]
    print(f"under the bar: {under or 'none'}")
    return int(bool(under))


if __name__ == "__main__":
    sys.exit(main())
