"""Speed of the Vision Transformer's inference beside timm's and transformers', with the same weights and outputs.

    python benchmarks/vit.py [--device cuda] [--compile] [--output benchmarks/results/vit_amd_epyc.json]

Each row is measured in turns (ours, ours packed, timm, ...), so that a machine that slows down slows all alike; the
medians are reported, and the ratio of the faster peer's time to that of ours with packed weights, on a GPU to ours:
above 1, ours is the faster one. `ceiling` is the share of that time that the row's matmuls take alone, and
`compiled` the ratio of the fastest of all compiled peers to the faster of ours compiled and eager. The exit status is
1 if a row is under its bar. On a machine that is not one's own, `--num_threads 1 --clock processor` leaves the time of
others out.
"""

import argparse
import copy
import sys
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from report import write_report
from timing import CLOCKS, interleaved_medians
from vit_peers import DTYPES, MODELS, PEERS, logits_of, make_models, matmuls_of, packed

from hf_vit.models.cpu_paths import PROCESSOR

BATCH_SIZES = (1, 8, 32)


def inference(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return logits_of(model, images)


def bar(row: dict) -> float:
    """The least ratio to the faster peer that is asked for."""
    if PROCESSOR == "intel":
        return {1: 1.25, 8: 1.12, 32: 1.15}[row["batch_size"]] if row["dtype"] == "bf16" else 1.05
    return 1.15 if row["dtype"] == "bf16" else 1.2


def compare(models: dict, images: torch.Tensor, tolerance: float) -> None:
    """Raise an error if the models' logits differ."""
    logits = {name: inference(model, images).float() for name, model in models.items()}
    for name in models:
        torch.testing.assert_close(logits[name], logits["timm"], atol=tolerance, rtol=tolerance)


def compiled_variants(models: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """Each model compiled as PyTorch does it unasked, and on a CPU with its weights frozen."""
    modes = {"compiled": None, "compiled, frozen": {"freezing": True}}
    if next(models["timm"].parameters()).is_cuda:
        modes = {"compiled": None, "max-autotune": {"max_autotune": True, "triton.cudagraphs": True}}
    variants = {}
    for (name, model), (mode, options) in ((pair, each) for pair in models.items() for each in modes.items()):
        variants[f"{name} {mode}"] = variant = copy.deepcopy(model)
        variant.compile(dynamic=False, options=options)
    return variants


def measure(name: str, dtype_name: str, batch_size: int, arguments: argparse.Namespace) -> dict:
    dtype, device = DTYPES[dtype_name], arguments.device
    models = make_models(MODELS[name], dtype, device)
    eager, best = dict(models), "ours"
    if device == "cpu":
        eager, best = {"ours": models["ours"], "ours packed": packed(models["ours"]), **models}, "ours packed"
    variants = {**eager, **(compiled_variants(models) if arguments.compile else {})}
    images = torch.randn(batch_size, 3, 224, 224, device=device, dtype=dtype)
    compare(variants, images, 1e-4 if dtype_name == "fp32" else 0.05)
    functions = {key: partial(inference, model, images) for key, model in variants.items()}
    functions["matmuls alone"], operations = matmuls_of(models["timm"], batch_size, dtype, device)
    at_least = arguments.at_least if batch_size < 32 or name != "ViT-B/16" else 1
    medians = interleaved_medians(functions, arguments.seconds, arguments.clock, at_least)
    row = {"model": name, "dtype": dtype_name, "batch_size": batch_size}
    row |= {f"{key} ms": round(value * 1e3, 3) for key, value in medians.items()}
    peers = min(medians[key] for key in PEERS)
    row |= {"ratio": round(peers / medians[best], 3), "ratio_unpacked": round(peers / medians["ours"], 3)}
    row |= {"ceiling": round(medians["matmuls alone"] / medians[best], 3)}
    row |= {"GFLOP/s": round(operations / medians[best] / 1e9)}
    if arguments.compile:
        fastest_peer = min(value for key, value in medians.items() if key.startswith(PEERS))
        row["compiled"] = round(fastest_peer / min(v for k, v in medians.items() if k.startswith("ours")), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each row (default: 6)")
    parser.add_argument("--at_least", type=int, default=5, help="rounds of each row at least (default: 5)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--compile", action="store_true", help="compiled models too, ours and the peers'")
    parser.add_argument("--num_threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads or torch.get_num_threads())
    rows = []
    for name in arguments.models:
        for dtype_name in arguments.dtypes:
            for batch_size in arguments.batch_sizes:
                rows.append(measure(name, dtype_name, batch_size, arguments))
                print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
                if arguments.output:  # also if the time does not suffice for all
                    facts = {"device": arguments.device, "clock": arguments.clock}
                    write_report(arguments.output, rows, (torch, timm, transformers), **facts)
    under = sum(row["ratio"] < bar(row) for row in rows)
    print(f"{len(rows) - under} of {len(rows)} rows reach the bar")
    sys.exit(int(under > 0))


if __name__ == "__main__":
    main()
