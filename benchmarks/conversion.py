"""Memory and time of converting ViT-L (304 M parameters) from safetensors, beside the size of its weights and the time
of copying the file.

    python benchmarks/conversion.py --output benchmarks/results/conversion.json

A fresh process converts each checkpoint; memory is the peak of its resident set beyond what the imports take (the
mapped file counts as well), time that of the conversion without the imports. Copies and conversions take turns, each
after what was written before is on the disk and with the source in memory, neither waits for its own file to be there,
and medians are compared. The checkpoints are made here, with random weights, in the formats of timm and of
transformers.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
import transformers
from report import write_report
from timm.models import save_for_hf

_PROGRAM = """
import json, sys, time
from hf_vit.conversion.checkpoint import read_checkpoint
from hf_vit.conversion.convert import convert
from hf_vit.conversion.source import all_sources
import timm, transformers
from transformers import AutoImageProcessor, ViTForImageClassification, ViTImageProcessor
all_sources()  # imports them
def resident(name):  # not getrusage's, which begins with what the parent held when it forked
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
before, started = resident("VmRSS"), time.perf_counter()
convert(sys.argv[1], sys.argv[2])
print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": time.perf_counter() - started}))
"""


def make(folder: Path, name: str) -> Path:
    """A checkpoint of ViT-L with random weights."""
    if name == "timm":
        model = timm.create_model("vit_large_patch16_224")
        save_for_hf(model, folder, safe_serialization=True)
    else:
        config = transformers.ViTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, num_labels=1000
        )
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        transformers.ViTImageProcessor().save_pretrained(folder)
    return folder


def copy_seconds(path: Path, target: Path) -> float:
    """Time of copying a file by the operating system, to a new file as the conversion writes."""
    os.sync()
    started = time.perf_counter()
    shutil.copyfile(path, target)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="Where the table goes as JSON.")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in ("timm", "transformers"):
            source = make(Path(directory, name), name)
            weights = source / "model.safetensors"
            copies, runs = [], []
            for i in range(arguments.repeats):
                copies.append(copy_seconds(weights, Path(directory, "copy")))
                target = Path(directory, f"{name}-{i}")
                command = [sys.executable, "-c", _PROGRAM, str(source), str(target)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                os.sync()
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(target)
            copy, seconds = statistics.median(copies), statistics.median(run["seconds"] for run in runs)
            size = weights.stat().st_size
            row = {
                "checkpoint": name,
                "weights_bytes": size,
                "peak_to_weights": round(max(run["bytes"] for run in runs) / size, 3),
                "seconds": round(seconds, 2),
                "copy_seconds": round(copy, 2),
                "seconds_to_copy": round(seconds / copy, 2),
                "all_seconds": [round(run["seconds"], 2) for run in runs],
                "all_copy_seconds": [round(each, 2) for each in copies],
            }
            rows.append(row)
            print(row, flush=True)
            shutil.rmtree(source)
    if arguments.output:
        write_report(arguments.output, rows, (torch, transformers, timm))


if __name__ == "__main__":
    main()
