# ruff: noqa: F821
"""Executed by test_remote_code.py in a process without the package, where SOURCE and TARGET are folders: loads the
models of the one, notes what they compute, and saves them into the other."""

from pathlib import Path

import huggingface_hub
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

# AutoBackbone takes only what the Hub says exists.
huggingface_hub.HfApi.repo_exists = lambda self, repo_id, **kwargs: True

LOADERS = {
    "HfViTModel": [AutoModel],
    "HfViTForImageClassification": [AutoModelForImageClassification, AutoModel, AutoBackbone],
    "HfViTBackbone": [AutoBackbone],
}


def outputs_of(model, pixel_values):
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        return dict(model.eval()(pixel_values))


def model_results(folder):
    """The outputs of each Auto class that serves the folder; the first one's model is saved again."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    pixel_values = torch.load(Path(folder) / "pixel_values.pt")
    results = {}
    for loader in LOADERS[config.architectures[0]]:
        model = loader.from_pretrained(folder, trust_remote_code=True)
        results[loader.__name__] = outputs_of(model, pixel_values)
        if len(results) == 1:
            model.save_pretrained(Path(TARGET) / Path(folder).name)
    return results


def image_results(folder):
    """Outputs of processor and pipelines for each picture in the folder."""
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.save_pretrained(Path(TARGET) / Path(folder).name)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True)
    describe = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
    results = {"backend": type(processor).__name__}
    for path in Path(folder).glob("*.png"):
        results[path.stem] = {
            "pixel_values": processor(Image.open(path), return_tensors="pt")["pixel_values"],
            "classes": classify(str(path), top_k=5),
            "tokens": torch.tensor(describe(str(path))),
            "pooled": torch.tensor(describe(str(path), pool=True)),
        }
    return results


results = {"images": {}}
for folder in sorted(path for path in Path(SOURCE).iterdir() if path.is_dir()):
    if (folder / "model.safetensors").exists():
        results[folder.name] = model_results(str(folder))
    else:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
        config.save_pretrained(Path(TARGET) / folder.name)
        results[folder.name] = config.to_dict()
    if (folder / "preprocessor_config.json").exists():
        results["images"][folder.name] = image_results(str(folder))
torch.save(results, Path(TARGET) / "results.pt")
