"""Every image recipe stands up on data put in place of its own, and those of ImageNet take steps."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
import training_runs
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_vit import tasks
from hf_vit.recipes import load_recipe

CLASSES = [f"class {number}" for number in range(1000)]
IMAGE_RECIPES = [name for name, path in tasks.recipes().items() if "task" not in load_recipe(path)]


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_a_dry_run_writes_nothing(name, tmp_path):
    data = ["--dataset_name=sklearn_digits", "--max_train_samples=100", "--max_eval_samples=20"]
    training_runs.finish(f"--recipe={name}", *data, "--teacher=none", "--dry_run", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def images_like_those_of_imagenet(folder, count=40):
    random = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    pictures = [Image.fromarray(random.integers(0, 256, (500, 600, 3), dtype=np.uint8)) for _ in range(count)]
    labels = random.permutation(1000)[:count].tolist()
    splits = {"train": labels, "validation": labels, "test": [-1] * count}
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"image": pictures, "label": own}, features)
            for split, own in splits.items()
        }
    ).save_to_disk(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGE_RECIPES if name.endswith("_imagenet1k")])
def test_recipes_of_imagenet_take_steps(name, tmp_path):
    images_like_those_of_imagenet(tmp_path / "data")
    torch.manual_seed(0)
    tiny = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    spelled = {number: f"other {number}" for number in range(1000)}
    ResNetForImageClassification(ResNetConfig(**tiny, id2label=spelled)).save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "teacher")
    small = ["--per_device_train_batch_size=6", "--max_train_steps=20", "--dataloader_num_workers=0"]
    teacher = [f"--teacher={tmp_path / 'teacher'}"] if load_recipe(name).get("teacher") else []
    data = ["--dataset_name", tmp_path / "data", "--card_num_samples=1"]
    training_runs.finish(f"--recipe={name}", *small, *teacher, *data, "--output_dir", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["epochs"][-1]["step"] == 20 and record["result"]["split"] == "validation"
    assert all(math.isfinite(row["train_loss"]) for row in record["epochs"])
    assert Image.open(tmp_path / "run" / "sample_0.png").size == (512, 427)
    assert set(record["data"]["splits"]) == {"train", "validation"}
    assert record["model"]["config"].get("distillation_type", "soft") == ("hard" if teacher else "soft")
