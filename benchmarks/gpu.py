"""The parts of `gpu.sh`: a row a measurement, in bf16 unless told otherwise, with the same weights as the peers'.

MFU is the share of the GPU's dense bf16 peak that the model's own operations take: forward, and three times that for
a step of training. The goals are 55 % for inference and 45 % for training.
"""

import argparse
import copy
import importlib.util
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from report import write_report
from timing import interleaved_medians
from vit_peers import MODELS, logits_of, make_models, matmuls_of
from vit_training import measure_memory, step_of

from hf_vit.conversion.models import from_peer

ROOT = Path(__file__).parents[1]
# Dense bf16 operations a second that the makers state.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
GOALS = {"inference": 0.55, "training": 0.45}


def peak_of(device: str) -> float | None:
    """Operations a second that the maker states of the GPU, or None."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def variants_of(models: dict[str, torch.nn.Module], compiles: bool) -> dict[str, torch.nn.Module]:
    """Each model eager and compiled."""
    compiled = {f"{name} compiled": copy.deepcopy(model) for name, model in models.items() if compiles}
    for model in compiled.values():
        model.compile(dynamic=False)
    return {**models, **compiled}


def speeds(arguments: argparse.Namespace, work: str) -> Iterator[dict]:
    """Inference or training of each size, all models in turns."""
    for name in arguments.models:
        models = variants_of(
            make_models(MODELS[name], torch.bfloat16, arguments.device, **arguments.options), arguments.compile
        )
        images, labels = batch_of(arguments, models["timm"])
        functions = {key: _work(work, model, images, labels) for key, model in models.items()}
        _, operations = matmuls_of(models["timm"], len(images), torch.bfloat16, arguments.device)
        medians = interleaved_medians(functions, arguments.seconds, at_least=arguments.at_least)
        ours, peers = ([v for k, v in medians.items() if k.startswith("ours") is mine] for mine in (True, False))
        row = {"row": work, "model": name, "batch_size": len(images)}
        row |= {f"{key} images/s": round(len(images) / value, 1) for key, value in medians.items()}
        row["ratio of the best"] = round(min(peers) / min(ours), 3)
        if peak := peak_of(arguments.device):
            row |= {
                "MFU": round(operations * (3 if work == "training" else 1) / min(ours) / peak, 3),
                "goal": GOALS[work],
            }
        yield row


def batch_of(arguments: argparse.Namespace, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (batch, 3, height, width) in bf16, and labels (batch,)."""
    size = model.patch_embed.img_size
    images = torch.randn(arguments.batch_size, 3, *size, device=arguments.device, dtype=torch.bfloat16)
    return images, torch.arange(arguments.batch_size, device=arguments.device) % 10


def _work(work: str, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    if work == "training":
        return step_of(model, images, labels)

    def infer() -> None:
        with torch.inference_mode():
            logits_of(model.eval(), images)

    return infer


def attention(arguments: argparse.Namespace) -> Iterator[dict]:
    """Each implementation of attention that is installed, its logits beside those of the eager one."""
    models = make_models(MODELS[arguments.models[0]], torch.bfloat16, arguments.device, **arguments.options)
    images, _ = batch_of(arguments, models["timm"])
    names = ["eager", "sdpa", *([] if arguments.tiny else ["flex_attention"])]  # compiled, which takes its time
    names += ["flash_attention_2"] if importlib.util.find_spec("flash_attn") and arguments.device == "cuda" else []
    with torch.inference_mode():
        functions, logits = {}, {}
        for name in names:
            model: Any = copy.deepcopy(models["ours"])
            model.set_attn_implementation(name)
            functions[name], logits[name] = partial(logits_of, model, images), logits_of(model, images).float()
        medians = interleaved_medians(functions, arguments.seconds, at_least=arguments.at_least)
    for name, value in medians.items():
        difference = (logits[name] - logits["eager"]).abs().max().item()
        yield {"row": "attention", "name": name, "images/s": round(len(images) / value, 1), "difference": difference}


def fp16(arguments: argparse.Namespace) -> Iterator[dict]:
    """Training in fp16 with a scaler of gradients: how many of its steps were taken, and the loss before and after."""
    model = make_models(MODELS[arguments.models[0]], device=arguments.device, **arguments.options)["ours"].train()
    images, labels = torch.randn(8, 3, *model.config.image_shape, device=arguments.device), torch.arange(8) % 4
    labels, optimizer = labels.to(arguments.device), torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler, losses = torch.amp.GradScaler(arguments.device), []
    for _ in range(arguments.steps):
        with torch.autocast(arguments.device, torch.float16):
            losses.append(torch.nn.functional.cross_entropy(logits_of(model, images).float(), labels))
        scaler.scale(losses[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    scale = scaler.get_scale()
    yield {"row": "fp16", "steps": arguments.steps, "scale": scale, "losses": [losses[0].item(), losses[-1].item()]}


def memory(arguments: argparse.Namespace) -> Iterator[dict]:
    """The peak of a step at 640 pixels, see vit_training.py."""
    yield measure_memory(arguments, 32 if arguments.tiny else 640)


def shards(arguments: argparse.Namespace) -> Iterator[dict]:
    """Steps of the recipe `deit_tiny_imagenet1k` over made-up shards, read as a stream by the loader."""
    if importlib.util.find_spec("datasets") is None:
        yield {"row": "shards", "left out": "datasets is not installed"}
        return
    import datasets

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", 4), ("validation", 1)):
            for shard in range(count):
                files = []
                for _ in range(arguments.shard_size):
                    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                    coarse.resize((500, 375)).save(file := io.BytesIO(), "jpeg")
                    files.append({"bytes": file.getvalue(), "path": None})
                table = {"image": files, "label": [i % 10 for i in range(len(files))]}
                names = datasets.ClassLabel(names=[str(i) for i in range(10)])
                features = datasets.Features({"image": datasets.Image(), "label": names})
                Path(folder, "data").mkdir(exist_ok=True)
                path = Path(folder, "data", f"{split}-{shard:05d}-of-{count:05d}.parquet")
                datasets.Dataset.from_dict(table, features=features).to_parquet(path)
        flags = [f"--dataset_name={folder}", f"--output_dir={folder}/run", "--streaming=true"]
        flags += [f"--max_train_steps={arguments.steps}", f"--samples_per_epoch={4 * arguments.shard_size}"]
        flags += ["--recipe=deit_tiny_imagenet1k", "--dataloader_num_workers=8", "--overwrite_output_dir=true"]
        command = [sys.executable, str(ROOT / "training" / "train.py"), *flags]
        result = subprocess.run(command, capture_output=True, text=True)
        yield {"row": "shards", "steps": arguments.steps, "status": result.returncode} | _told(result.stderr)


def _told(output: str) -> dict:
    lines = [line for line in output.replace("\r", "\n").splitlines() if line.strip()]
    return {"last lines": lines[-3:]}


def translation(arguments: argparse.Namespace) -> Iterator[dict]:
    """Greedy search, ours beside Marian."""
    torch.manual_seed(0)
    width, layers = (64, 1) if arguments.tiny else (512, 6)
    peer = transformers.MarianMTModel(
        transformers.MarianConfig(
            **{"vocab_size": 1000, "d_model": width, "pad_token_id": 999, "decoder_start_token_id": 999},
            **{"encoder_layers": layers, "decoder_layers": layers, "encoder_ffn_dim": 4 * width},
            **{"encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64},
            **{"decoder_ffn_dim": 4 * width, "eos_token_id": 0, "forced_eos_token_id": None},
        )
    ).eval()
    peer.final_logits_bias[0, [0, 999]] = -1e4
    models = {"ours": from_peer(peer), "Marian": peer}
    models = {name: model.to(arguments.device, torch.bfloat16) for name, model in models.items()}
    for batch_size in (1, 2) if arguments.tiny else (1, 16, 64):
        source = torch.randint(1, 999, (batch_size, 30), device=arguments.device)
        options = {"attention_mask": torch.ones_like(source), "max_new_tokens": 2 if arguments.tiny else 30}
        functions = {name: partial(model.generate, source, **options) for name, model in models.items()}
        medians = interleaved_medians(functions, arguments.seconds, at_least=arguments.at_least)
        row = {"row": "translation", "batch_size": batch_size}
        row |= {f"{name} ms": round(value * 1e3, 2) for name, value in medians.items()}
        yield row | {"ratio": round(medians["Marian"] / medians["ours"], 3)}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict]]] = {
    "inference": partial(speeds, work="inference"),
    "training": partial(speeds, work="training"),
    "attention": attention,
    "fp16": fp16,
    "memory": memory,
    "translation": translation,
    "shards": shards,
}


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="sizes that tell nothing, on a CPU, to try this program")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row (default: 5)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args(given)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no GPU: give --tiny to try this program on a CPU")
    arguments.device = "cpu" if arguments.tiny else "cuda"
    arguments.models, arguments.options = ["ViT-S/16", "ViT-B/16"], {}
    arguments.compile, arguments.at_least, arguments.steps, arguments.shard_size = True, 5, 300, 1000
    if arguments.tiny:
        arguments.models = arguments.models[:1]
        arguments.options = {"img_size": 32, "depth": 1, "embed_dim": 64, "num_heads": 1, "num_classes": 10}
        arguments.compile, arguments.at_least, arguments.steps, arguments.shard_size = False, 1, 2, 8
        arguments.batch_size, arguments.seconds = 2, 0.01
    return arguments


def main(given: list[str] | None = None) -> list[dict]:
    arguments, rows = parse(given), []
    for part in arguments.parts:
        for row in PARTS[part](arguments):
            rows.append(row)
            print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            if arguments.output:  # also if something fails later
                write_report(arguments.output, rows, (torch, timm, transformers), device=arguments.device)
    return rows


if __name__ == "__main__":
    main()
