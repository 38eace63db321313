"""The folder of a run, as training leaves it, of a model that was not trained."""

import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTImageProcessor

from hf_vit import HfViTConfig, HfViTForImageClassification


def save_run(folder: Path, hub_model_id: str) -> Path:
    """Model, processor, a sample, `run.json` and a checkpoint; no card yet."""
    torch.manual_seed(0)
    names = [str(digit) for digit in range(10)]
    config = HfViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        use_distillation_token=True, initializer_range=0.5, id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    HfViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, do_convert_rgb=True).save_pretrained(folder)
    Image.linear_gradient("L").resize((16, 16)).save(folder / "sample_0.png")
    run = {
        "task": "image_classification",
        "status": "finished",
        "command": "accelerate launch training/train.py --output_dir /home/alice/runs/digits",
        "arguments": {
            "output_dir": "/home/alice/runs/digits",
            "hub_model_id": hub_model_id,
            "train_dir": "/data/sets/digits",
        },
        "data": {"name": "/data/sets/digits", "class_names": names},
        "result": {
            "split": "test",
            "num_examples": 40,
            "metrics": {"accuracy": 0.1},
            "samples": [{"file": "sample_0.png", "label": "3", "prediction": "3", "score": 0.5}],
        },
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "checkpoints").mkdir()
    save_file({"step": torch.ones(1)}, folder / "checkpoints" / "optimizer.safetensors")
    return folder


def digests(folder: Path) -> dict[Path, str]:
    """The SHA-256 of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
