"""How many images a second are read, decoded, augmented and batched, beside timm's loader.

    python benchmarks/loader.py [--num_workers 0 2] [--output benchmarks/results/loader.json]

The images are drawn at random, smooth like photographs and grained: PNG files of 32 pixels, and JPEG files of 500 by
375 pixels that become 224 by 224. Both loaders cut a random part (RandomResizedCrop, bicubic) and flip half of the
images, for the photographs also with RandAugment (two operations of strength 9, each library's own), and end with
normalised fp32 batches of 64. Passes are taken in turns; the medians are reported, and the ratio of our speed to
timm's: above 1, ours is the faster one. `in memory` is `--keep_in_memory`, which timm has no like of.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from datasets import disable_progress_bars
from PIL import Image
from report import write_report
from timm.data import create_dataset, create_loader
from tqdm import tqdm

from hf_vit.tasks.image_classification.augment import normalize
from hf_vit.train import build_task, parse

# Name: size of the files, how many, their format, size of the views, RandAugment.
CASES = {
    "small": ((32, 32), 4000, "png", 32, False),
    "photos": ((500, 375), 400, "jpeg", 224, False),
    "photos, RandAugment": ((500, 375), 400, "jpeg", 224, True),
}
CLASSES = ("a", "b")
BATCH_SIZE = 64


def draw_images(folder: Path, size: tuple[int, int], count: int, kind: str) -> None:
    """Two folders of files; nothing if they are there already."""
    generator = np.random.default_rng(0)
    for number in range(0 if folder.is_dir() else count):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        grain = generator.normal(0, 4, (size[1], size[0], 3))
        image = Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))
        (folder / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
        image.save(folder / CLASSES[number % 2] / f"{number}.{kind}")


def our_batches(folder: Path, size: int, randaugment: bool, num_workers: int, keep_in_memory: bool) -> Iterable:
    arguments = ["--recipe=images", f"--train_dir={folder}", "--train_val_split=0.01", f"--image_size={size}"]
    arguments += ["--random_erasing_prob=0", f"--auto_augment={'randaugment' if randaugment else 'none'}"]
    arguments += [f"--per_device_train_batch_size={BATCH_SIZE}", f"--dataloader_num_workers={num_workers}"]
    arguments += [f"--keep_in_memory={keep_in_memory}", "--config_overrides=patch_size=8"]
    task = build_task(parse(arguments))
    loader = task.train_loader(1)

    class Normalised:
        """The loop normalises on the model's device, where there is time for it; here it counts."""

        def __iter__(self):
            return (normalize(batch["pixel_values"], task.processor) for batch in loader)

    return Normalised()


def timm_batches(folder: Path, size: int, randaugment: bool, num_workers: int) -> Iterable:
    return create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, size, size),
        batch_size=BATCH_SIZE,
        is_training=True,
        color_jitter=0.0,
        auto_augment="rand-m9-n2" if randaugment else None,
        interpolation="bicubic",
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        use_prefetcher=False,
    )


def images_per_second(batches: Iterable) -> float:
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch[0] if isinstance(batch, list) else batch)
    return count / (time.perf_counter() - start)


def measure(folder: Path, case: str, num_workers: int, passes: int) -> dict:
    file_size, count, kind, size, randaugment = CASES[case]
    draw_images(folder, file_size, count, kind)
    loaders = {
        "ours": our_batches(folder, size, randaugment, num_workers, keep_in_memory=False),
        "ours, in memory": our_batches(folder, size, randaugment, num_workers, keep_in_memory=True),
        "timm": timm_batches(folder, size, randaugment, num_workers),
    }
    for batches in loaders.values():  # starts workers, fills memory
        images_per_second(batches)
    speeds = {name: [] for name in loaders}
    for _ in tqdm(range(passes), desc=f"{case}, {num_workers} workers", unit="pass"):
        for name, batches in loaders.items():
            speeds[name].append(images_per_second(batches))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    row = {"images": case, "num_workers": num_workers}
    row |= {f"{name}, images/s": round(speed) for name, speed in medians.items()}
    return row | {"ratio": round(medians["ours"] / medians["timm"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, num_workers in product(CASES, arguments.num_workers):
            images = Path(folder, CASES[case][2])
            rows.append(measure(images, case, num_workers, arguments.passes))
            print("  ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.output:
        write_report(arguments.output, rows, (torch, torchvision, timm))


if __name__ == "__main__":
    main()
