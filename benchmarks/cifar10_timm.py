"""A small Vision Transformer on CIFAR-10: recipe `cifar10` beside timm's model under timm's training script.

    python benchmarks/cifar10_timm.py --dataset_name FOLDER_OR_ID --timm CLONE_OF_PYTORCH_IMAGE_MODELS

Both get the same images, the same number of epochs, the same batch size and models of the same size and shape of body;
the last weights are scored, none chosen by score. timm's script runs twice: with the augmentation of its usual recipe
for Vision Transformers, and with as little of it as our recipe takes, for a budget this short is not what the former
is made for. Finished runs are not trained again.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from hf_vit.files import write_atomically
from hf_vit.recipes import load_recipe
from hf_vit.study import finished_run
from hf_vit.tasks.image_classification.data import DataArguments, load_labelled_images

RECIPE = "cifar10"
# Without mmax, some strengths are drawn above 9, at which timm asks Pillow for an image of 0 bits, which it refuses.
USUAL = ["--aa", "rand-m9-mstd0.5-mmax9-inc1", "--mixup", "0.8", "--cutmix", "1.0"]
USUAL += ["--reprob", "0.25", "--smoothing", "0.1", "--drop-path", "0.1"]
LIGHT = ["--train-crop-mode", "rkrc", "--color-jitter", "0", "--smoothing", "0"]
CONTENDERS = {"timm, usual recipe": USUAL, "timm, light augmentation": LIGHT, "hf_vit, recipe cifar10": None}


def export_images(dataset_name: str, folder: Path) -> None:
    """The images as PNG in a folder a class, which timm's script reads; nothing if that is done already."""
    if (folder / "done").exists():
        return
    data = load_labelled_images(DataArguments(dataset_name=dataset_name, train_val_split=0), 0)
    for split, images in data.splits.items():
        images = images.cast_column("image", images.features["image"].__class__(decode=True))
        for name in data.class_names:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(tqdm(images, desc=split, unit="image")):
            row["image"].convert("RGB").save(folder / split / data.class_names[row["label"]] / f"{number:05}.png")
    (folder / "done").touch()


def timm_command(timm: Path, images: Path, recipe: dict, seed: int, output: Path, own: list[str]) -> list[str]:
    model, size = recipe["config_overrides"], recipe["image_size"][0]
    shape = {
        "img_size": size,
        "patch_size": model["patch_size"],
        "embed_dim": model["hidden_size"],
        "depth": model["num_hidden_layers"],
        "num_heads": model["num_attention_heads"],
        "mlp_ratio": model["intermediate_size"] / model["hidden_size"],
    }
    options = {
        "data-dir": images,
        "val-split": "test",
        "model": "vit_tiny_patch16_224",
        "img-size": size,
        "num-classes": 10,
        "mean": "0.5 0.5 0.5",
        "std": "0.5 0.5 0.5",
        "crop-pct": 1.0,
        "device": "cpu",
        "amp-dtype": "bfloat16",
        "opt": "adamw",
        "lr": 1e-3,
        "weight-decay": 0.05,
        "sched": "cosine",
        "epochs": recipe["num_train_epochs"],
        "warmup-epochs": 1,
        "clip-grad": 1.0,
        "batch-size": recipe["per_device_train_batch_size"],
        "workers": 1,
        "seed": seed,
        "output": output.parent,
        "experiment": output.name,
        "checkpoint-hist": 1,
    }
    command = [sys.executable, str(timm / "train.py"), "--amp", "--no-prefetcher", "--sched-on-updates"]
    for name, value in options.items():
        command += [f"--{name}", *str(value).split()]
    return [*command, "--model-kwargs", *(f"{name}={value}" for name, value in shape.items()), *own]


def run_timm(arguments: argparse.Namespace, recipe: dict, name: str, seed: int) -> dict:
    """Top-1 accuracy of the last epoch."""
    output = arguments.output_dir / name.replace(" ", "_").replace(",", "") / f"seed_{seed}"
    log = output / "log.txt"
    if not (output / "finished").exists():
        images = arguments.output_dir / "images"
        export_images(arguments.dataset_name, images)
        output.mkdir(parents=True, exist_ok=True)
        command = timm_command(arguments.timm.resolve(), images, recipe, seed, output, CONTENDERS[name])
        with log.open("w") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)
        (output / "finished").touch()
    rows = list(csv.DictReader(next(output.glob("**/summary.csv")).open()))
    if len(rows) < recipe["num_train_epochs"]:
        raise RuntimeError(f"timm's script stopped early: {log}")
    counted = next(line for line in log.read_text().splitlines() if "param count" in line)
    return {"accuracy": float(rows[-1]["eval_top1"]) / 100, "num_parameters": int(counted.rpartition(":")[2])}


def run_ours(arguments: argparse.Namespace, seed: int) -> dict:
    output = arguments.output_dir / "hf_vit" / f"seed_{seed}"
    if finished_run(output) is None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "training/train.py", "--recipe", RECIPE]
        command += ["--dataset_name", arguments.dataset_name, "--seed", str(seed), "--output_dir", str(output)]
        subprocess.run([*command, "--overwrite_output_dir"], check=True, cwd=Path(__file__).parents[1])
    run = finished_run(output)
    return {
        "accuracy": run["result"]["metrics"]["accuracy"],
        "num_parameters": run["model"]["num_parameters"],
        "versions": run["versions"],
        "hardware": run["hardware"],
    }


def table(rows: list[dict]) -> str:
    lines = ["| Contender | Test accuracy | Parameters | Runs |", "|---|---:|---:|---:|"]
    for name in CONTENDERS:
        own = [row for row in rows if row["contender"] == name]
        if own:
            values = [100 * row["accuracy"] for row in own]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            mean = statistics.mean(values)
            lines.append(f"| {name} | {mean:.2f}{spread} % | {own[0]['num_parameters']:,} | {len(own)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", required=True, help="CIFAR-10 as a dataset of the Hub or a folder")
    parser.add_argument("--timm", type=Path, required=True, help="a clone of pytorch-image-models, for its train.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/cifar10_timm"), help="where the runs are kept"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/cifar10_timm.json"))
    arguments = parser.parse_args()
    arguments.output_dir = arguments.output_dir.resolve()
    recipe, rows = load_recipe(RECIPE), []
    for seed in arguments.seeds:
        for name in CONTENDERS:
            ours = CONTENDERS[name] is None
            found = run_ours(arguments, seed) if ours else run_timm(arguments, recipe, name, seed)
            rows.append({"contender": name, "seed": seed, **found})
            content = {"num_train_epochs": recipe["num_train_epochs"], "contenders": CONTENDERS, "runs": rows}
            write_atomically(arguments.results, (json.dumps(content, indent=1) + "\n").encode())
            write_atomically(arguments.results.with_suffix(".md"), table(rows).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
