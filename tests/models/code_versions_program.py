# ruff: noqa: E402
"""Run by test_code_versions.py, without the package: one process loads folders of one name whose model code differs.

Usage: python code_versions_program.py FOLDER; it holds `v1`, `v2` and `edited`, each with a folder for each model.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(sys.argv[1])
sys.modules["hf_vit"] = None  # importing it now fails

import torch
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM

LOADERS = {"digits": AutoModelForImageClassification, "dates": AutoModelForSeq2SeqLM}
results = {}


def load(version, name, note):
    folder = ROOT / version / name
    model = LOADERS[name].from_pretrained(str(folder), trust_remote_code=True).eval()
    with torch.no_grad():
        results[name, note] = model(**torch.load(ROOT / f"{name}.pt")).logits
    return model


for name in LOADERS:
    models = {version: load(version, name, version) for version in ("v1", "v2")}
    load("v1", name, "v1 again")
    for version, model in models.items():
        model.save_pretrained(ROOT / f"{version}-again" / name)
    load("v2-again", name, "v2 saved again")
    shutil.copytree(ROOT / "edited" / name, ROOT / "v1" / name, dirs_exist_ok=True)
    load("v1", name, "v1 edited").save_pretrained(ROOT / "edited-again" / name)
torch.save(results, ROOT / "results.pt")
