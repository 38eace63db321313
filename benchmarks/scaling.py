"""How time and memory grow with the work, beside theory and a peer with the same weights.

    python benchmarks/scaling.py [--axes tokens batch] [--cut | --tiny] [--output benchmarks/results/scaling_NAME.json]

Prints, for each axis, seconds and bytes at each size, and the slope: the power with which they grow over the upper
half of the sizes. Theory is the slope of the multiply-accumulates there, and for memory that of what is held. A slope
that exceeds both theory and the peer's by 0.25 is marked, and makes the exit status 1; so little memory that the
allocator's pages decide is left out. Memory of a CPU is told on Linux alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import timm
import torch
import transformers
from report import write_report
from timing import CLOCKS, interleaved_medians, peak_bytes, slope
from vit_peers import logits_of, make_models

from hf_vit.conversion.models import from_peer
from hf_vit.train import build_task, parse

STEEPER = 0.25
LEAST_BYTES = 8 << 20
WIDTH, HEADS = 192, 3


class Case(NamedTuple):
    """One size of an axis.

    Args:
        functions: name to what is timed, ours and the peer.
        macs: multiply-accumulates, or whatever time should grow with.
        held: numbers held at a time, or whatever memory should grow with.
    """

    functions: dict[str, Callable[[], object]]
    macs: float
    held: float


def _vit(tokens: int, batch: int = 1, depth: int = 12, classes: int = 1000, width: int = WIDTH) -> Case:
    """ViT-Ti/16 over images of `tokens` tokens, the class token among them."""
    side = round((tokens - 1) ** 0.5)
    sizes = {"img_size": 16 * side, "depth": depth, "num_classes": classes, "embed_dim": width}
    models = make_models("vit_tiny_patch16_224", **sizes)
    images = torch.randn(batch, 3, 16 * side, 16 * side)
    functions = {name: partial(_infer, models[name], images) for name in ("ours", "timm")}
    layer = 12 * tokens * width**2 + 2 * tokens**2 * width
    return Case(functions, batch * (depth * layer + classes * width + tokens * 768 * width), batch * tokens * width)


def _head(classes: int) -> Case:
    """One token's worth of layers, so that what is left is the head."""
    case = _vit(5, batch=64, depth=1, classes=classes)
    return case._replace(held=64 * (classes + 16 * WIDTH * 5))


def _infer(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        logits_of(model, images)


def _translators(length: int, width: int, depth: int) -> dict[str, Any]:
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=1000,
        d_model=width,
        **{f"{stack}_layers": depth for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": width // 64 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 4 * width for stack in ("encoder", "decoder")},
        max_position_embeddings=2 * length,
        pad_token_id=999,
        decoder_start_token_id=999,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    peer = transformers.MarianMTModel(config).eval()
    peer.final_logits_bias[0, [0, 999]] = -1e4  # neither the end nor the padding is ever the likeliest token
    return {"ours": from_peer(peer), "Marian": peer}


def _sentence(length: int, width: int = 128, depth: int = 2) -> Case:
    """A forward pass of encoder and decoder, both over `length` tokens."""
    tokens = torch.arange(length)[None] % 900 + 1

    def run(model: Any) -> None:
        with torch.inference_mode():
            model(input_ids=tokens, decoder_input_ids=tokens)

    models = _translators(length, width, depth)
    macs = depth * (28 * length * width**2 + 6 * length**2 * width) + 1000 * length * width
    return Case({name: partial(run, model) for name, model in models.items()}, macs, length * (1000 + 8 * width))


def _decoding(length: int, width: int = 128, depth: int = 2) -> Case:
    """Greedy search for `length` tokens after as many, one by one over a cache: each costs a read of the weights, and
    attention to all before it."""
    tokens = torch.arange(length)[None] % 900 + 1

    def run(model: Any) -> None:
        model.generate(tokens, attention_mask=torch.ones_like(tokens), num_beams=1, max_new_tokens=length)

    models = _translators(length, width, depth)
    macs = depth * (28 * length * width**2 + 6 * length**2 * width) + 1000 * length * width
    return Case({name: partial(run, model) for name, model in models.items()}, macs, length * width * depth * 8)


def _data(count: int, folder: Path) -> Case:
    """An index of images: from the saved data set to the first shuffled batch."""
    path = folder / str(count)
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000080000000808020000004b6d29dc0000001449444154789c633c21a7c1800d3061151db412"
        "00d87c011e6c9450c70000000049454e44ae426082"
    )
    images = pa.StructArray.from_arrays(
        [pa.array([png], pa.binary()).take(pa.array([0] * count)), pa.nulls(count, pa.string())], ["bytes", "path"]
    )
    labels = pa.array([i % 10 for i in range(count)], pa.int64())
    names = datasets.ClassLabel(names=[f"class {i}" for i in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    table = pa.table({"image": images, "label": labels}).cast(features.arrow_schema)
    datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(str(path))
    flags = [f"--dataset_name={path}", "--recipe=images", "--image_size=32", "--train_val_split=0.5"]
    flags += ["--on_bad_sample=error"]  # which does not decode all of them first
    flags += ["--config_overrides=patch_size=8", "--dataloader_num_workers=0", "--per_device_train_batch_size=8"]

    def ours() -> None:
        next(iter(build_task(parse(flags)).train_loader(1)))

    def plain() -> None:
        dataset = datasets.load_from_disk(str(path))["train"].train_test_split(0.5, seed=0)["train"]
        next(iter(torch.utils.data.DataLoader(dataset, 8, shuffle=True, collate_fn=list)))

    return Case({"ours": ours, "datasets": plain}, count, count)


def _processes(count: int) -> Case:
    """Sixteen steps of training by `count` processes with one thread each, less the same run of one step."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--master_port=0"]
    command += ["--standalone", str(Path(__file__).parents[1] / "training" / "train.py"), "--cpu=true"]

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            flags = [f"--output_dir={folder}", f"--max_train_steps={steps}"]
            flags += [f"--per_device_train_batch_size={64 // count}"]
            start = time.perf_counter()
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, *flags], check=True, capture_output=True, env=environment)
            return time.perf_counter() - start

    return Case({"ours": lambda: run(16)}, 1 / count, 1.0)


AXES: dict[str, tuple[Callable[..., Case], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # What makes a case of a size; all sizes, those of a quick look, those of a test.
    "tokens": (_vit, (65, 257, 1025, 2026, 4097), (65, 257, 1025, 4097), (5, 10)),
    "batch": (partial(_vit, 65), (1, 4, 16, 64), (1, 8, 32), (1, 2)),
    "depth": (partial(_vit, 65, 1), (3, 6, 12, 24, 48), (6, 12, 24), (1, 2)),
    "classes": (_head, (10, 100, 1000, 21_841), (10, 1000, 21_841), (2, 4)),
    "sentence": (_sentence, (8, 64, 256, 512, 1024), (8, 256, 1024), (4, 8)),
    "decoding": (_decoding, (8, 64, 256, 1024), (8, 64, 256), (2, 3)),
    "data": (_data, (10_000, 100_000, 1_300_000), (10_000, 1_300_000), (20, 40)),
    "processes": (_processes, (1, 2), (1, 2), (1, 2)),
}


def measure(axis: str, sizes: tuple[int, ...], arguments: argparse.Namespace, folder: Path) -> list[dict]:
    make, rows = AXES[axis][0], []
    for size in sizes:
        case = make(size, folder) if axis == "data" else make(size)
        at_least = 1 if axis in ("data", "processes") else arguments.at_least
        clock = "wall" if axis == "processes" else arguments.clock
        seconds = interleaved_medians(case.functions, arguments.seconds, clock, at_least)
        memory = {} if axis == "processes" else {name: peak_bytes(run) for name, run in case.functions.items()}
        row = {"axis": axis, "size": size, "macs": case.macs, "held": case.held}
        row |= {f"{name} s": round(value, 6) for name, value in seconds.items()}
        rows.append(row | {f"{name} bytes": value for name, value in memory.items()})
        print("  ".join(f"{key}: {value:,}" for key, value in rows[-1].items() if value != axis), flush=True)
    return rows


def slopes(rows: list[dict]) -> Iterator[dict]:
    """Of time and memory over the upper half of an axis's sizes."""
    upper = rows[-max(2, (len(rows) + 1) // 2) :]
    sizes = [row["size"] for row in upper]
    for unit, theory in (("s", "macs"), ("bytes", "held")):
        names = [key.removesuffix(f" {unit}") for key in upper[0] if key.endswith(f" {unit}")]
        values = {name: [row[f"{name} {unit}"] for row in upper] for name in names}
        if not names or any(not value or value < 0 for each in values.values() for value in each):
            continue
        if unit == "bytes" and values["ours"][-1] < LEAST_BYTES:
            continue
        found = {name: round(slope(sizes, each), 2) for name, each in values.items()}
        expected = round(slope(sizes, [row[theory] for row in upper]), 2)
        limit = max(expected, *(value for name, value in found.items() if name != "ours")) + STEEPER
        yield (
            {"axis": upper[0]["axis"], "of": "time" if unit == "s" else "memory", "theory": expected}
            | {f"slope of {name}": value for name, value in found.items()}
            | {"too steep": found["ours"] > limit}
        )


def main(arguments_given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--cut", action="store_true", help="fewer sizes, for a quick look")
    parser.add_argument("--tiny", action="store_true", help="sizes that tell nothing, to try this program")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each size (default: 2)")
    parser.add_argument("--at_least", type=int, default=3, help="rounds of each size at least (default: 3)")
    parser.add_argument("--num_threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args(arguments_given)
    torch.set_num_threads(arguments.num_threads or torch.get_num_threads())
    datasets.disable_progress_bars()
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for axis in arguments.axes:
            sizes = AXES[axis][3 if arguments.tiny else 2 if arguments.cut else 1]
            rows += measure(axis, sizes, arguments, Path(folder))
            found += slopes([row for row in rows if row["axis"] == axis])
            for row in (row for row in found if row["axis"] == axis):
                print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            if arguments.output:
                modules = (torch, timm, transformers, datasets)
                write_report(arguments.output, rows, modules, clock=arguments.clock, slopes=found)
    return int(any(row["too steep"] for row in found) and not arguments.tiny)


if __name__ == "__main__":
    sys.exit(main())
