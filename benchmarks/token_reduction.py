"""Speed of Vision Transformers that merge almost all their patches, beside the same model with all its tokens.

    python benchmarks/token_reduction.py [--device cuda] [--output benchmarks/results/token_reduction_cpu.json]

Of 197 tokens, 15 are merged in each of 12 layers. The two ways are measured in turns, so that a machine that slows
down slows both alike; the medians are reported, and their ratio: above 1, merging is the faster one. On a CPU it is
processor time of all threads that counts, which other programs on the machine disturb less than the time on the wall.
The bar is 1.5 for ViT-S/16 and in fp32, 1.6 for ViT-B/16 in bf16; the exit status is 1 if a row is under it. Weights
are random: speed does not depend on them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from report import write_report

from hf_vit import HfViTConfig, HfViTForImageClassification

MODELS = {"ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224"}
BATCH_SIZES = (8, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MERGED = 15


def bar(model: str, dtype_name: str) -> float:
    """The least ratio that is asked for."""
    return 1.6 if (model, dtype_name) == ("ViT-B/16", "bf16") else 1.5


def classify(model: torch.nn.Module, images: torch.Tensor, number: int) -> None:
    """A forward pass in which each layer merges so many patches."""
    model.config.token_merging_r = number
    with torch.inference_mode():
        model(images)


def seconds_of(model: torch.nn.Module, images: torch.Tensor, number: int) -> float:
    """Time of a forward pass: of the processor on a CPU, on the wall on a GPU."""
    if not images.is_cuda:
        start = time.process_time()
        classify(model, images, number)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    classify(model, images, number)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, dtype_name: str, batch_size: int, device: str, rounds: int) -> dict:
    torch.manual_seed(0)
    model = HfViTForImageClassification(HfViTConfig.from_variant(MODELS[name])).eval().to(device, DTYPES[dtype_name])
    images = torch.randn(batch_size, 3, 224, 224, device=device, dtype=DTYPES[dtype_name])
    times: dict[int, list[float]] = {0: [], MERGED: []}
    for number in times:  # warms up
        seconds_of(model, images, number)
    for _ in range(rounds):
        for number, seconds in times.items():
            seconds.append(seconds_of(model, images, number))
    whole, merged = (statistics.median(seconds) for seconds in times.values())
    row = {
        "model": name,
        "dtype": dtype_name,
        "batch_size": batch_size,
        "token_merging_r": MERGED,
        "all_tokens_ms": round(whole * 1e3, 2),
        "merged_ms": round(merged * 1e3, 2),
        "all_tokens_images_per_second": round(batch_size / whole, 2),
        "merged_images_per_second": round(batch_size / merged, 2),
        "ratio": round(whole / merged, 3),
        "bar": bar(name, dtype_name),
    }
    print(
        f"{name:<10}{dtype_name:<6}{batch_size:>5}{row['all_tokens_ms']:>15.2f}{row['merged_ms']:>12.2f}"
        f"{row['ratio']:>8.2f}{row['bar']:>6}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    print(f"{'model':<10}{'dtype':<6}{'batch':>5}{'all tokens ms':>15}{'merged ms':>12}{'ratio':>8}{'bar':>6}")
    rows = [
        measure(name, dtype_name, batch_size, arguments.device, arguments.rounds)
        for name in arguments.models
        for dtype_name in arguments.dtypes
        for batch_size in arguments.batch_sizes
    ]
    if arguments.output:
        clock = "wall" if arguments.device.startswith("cuda") else "processor"
        write_report(arguments.output, rows, (torch, transformers), device=arguments.device, clock=clock)
    under = sum(row["ratio"] < row["bar"] for row in rows)
    print(f"{len(rows) - under} of {len(rows)} rows reach the bar")
    sys.exit(int(under > 0))


if __name__ == "__main__":
    main()
