"""Time from nothing to the first answer: import, a saved folder, one prediction, beside transformers' own ViT; and
`hf-vit translate` with one short text.

    python benchmarks/start.py [--repeats 5] [--clock processor] [--output FILE]

Each is a new process; they take turns, and the medians are reported, in all and of each stage. The bar is 1.1 times
the time of transformers' ViT. `floor` is a process that does nothing but what any translation needs: importing torch
and transformers' tokenizers and generation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import timm
import torch
import transformers
from report import write_report
from timing import CLOCKS
from vit_peers import MODELS, make_models

ROOT = Path(__file__).parents[1]
STAGES = ("import", "from_pretrained", "first prediction")
PROGRAM = """
import json, sys, time
read = {clock}
times = [read()]
import torch
{imports}
times.append(read())
model = {model}.from_pretrained({folder!r}).eval()
times.append(read())
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224)).logits
times.append(read())
print(json.dumps(times))
"""
FLOOR = "import torch; from transformers import AutoTokenizer, PreTrainedModel, GenerationMixin"


def stages(folder: Path, module: str, model: str, clock: str) -> list[float]:
    """Seconds that each stage takes in a process of its own."""
    names = {"clock": f"time.{CLOCKS[clock].__name__}", "imports": f"import {module}", "model": f"{module}.{model}"}
    program = PROGRAM.format(**names, folder=str(folder))
    times = json.loads(run([sys.executable, "-c", program]).splitlines()[-1])
    return [after - before for before, after in pairwise(times)]


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def seconds_of(command: list[str], clock: str) -> float:
    """Seconds of a whole process, of the processor's time that of all its threads."""
    start, used = time.perf_counter(), os.times()
    run(command)
    after = os.times()
    processor = after.children_user + after.children_system - used.children_user - used.children_system
    return processor if clock == "processor" else time.perf_counter() - start


def measure_vit(arguments: argparse.Namespace, folder: Path) -> dict:
    models = make_models(MODELS[arguments.model])
    kinds = {"ours": ("hf_vit", "HfViTForImageClassification")}
    kinds["transformers"] = ("transformers", "ViTForImageClassification")
    for name in kinds:
        models[name].save_pretrained(folder / name)
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for turn in range(arguments.repeats + 1):
        for name, (module, model) in kinds.items():
            found = stages(folder / name, module, model, arguments.clock)
            times[name] += [found] if turn else []  # the first turn reads files from the disk
    row = {"row": "first prediction", "model": arguments.model}
    for name, found in times.items():
        for stage, values in zip(STAGES, zip(*found)):
            row[f"{name}, {stage} s"] = round(statistics.median(values), 3)
        row[f"{name} s"] = round(statistics.median(map(sum, found)), 3)
    return row | {"times transformers'": round(row["ours s"] / row["transformers s"], 3)}


def measure_translate(arguments: argparse.Namespace) -> dict:
    hf_vit = [sys.executable, "-c", "from hf_vit.cli import main; main()"]
    commands = {
        "hf-vit translate": [*hf_vit, "translate", "model_cards/dates", "piatok 31. marca 2084"],
        "floor": [sys.executable, "-c", FLOOR],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.repeats + 1):
        for name, command in commands.items():
            found = seconds_of(command, arguments.clock)
            times[name] += [found] if turn else []
    medians = {name: statistics.median(values) for name, values in times.items()}
    row = {"row": "first translation"} | {f"{name} s": round(value, 3) for name, value in medians.items()}
    return row | {"ours s": round(medians["hf-vit translate"] - medians["floor"], 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-Ti/16", choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure_vit(arguments, Path(folder)), measure_translate(arguments)]
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    if arguments.output:
        write_report(arguments.output, rows, (torch, timm, transformers), clock=arguments.clock)
    return int(rows[0]["times transformers'"] > 1.1)


if __name__ == "__main__":
    sys.exit(main())
