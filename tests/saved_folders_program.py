"""Outputs of a classifier and a translator in a folder, with this package or without it: see test_saved_folders."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoTokenizer

EXPECTED = json.loads((Path(__file__).parent / "fixtures" / "saved_by_0_1_0" / "expected.json").read_text())


@torch.no_grad()
def outputs_of(folder, **options):
    folder = Path(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder / "classifier", **options)
    translator = AutoModelForSeq2SeqLM.from_pretrained(folder / "translator", **options)
    tokenizer = AutoTokenizer.from_pretrained(folder / "translator", **options)
    inputs = dict(tokenizer(EXPECTED["texts"], padding=True, return_tensors="pt"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    images = torch.arange(2 * 3 * 16 * 16).mul(0.37).sin().view(2, 3, 16, 16)
    generate = {**inputs, "max_new_tokens": 20}
    return {
        "module": type(translator).__module__,
        "logits": classifier(images).logits.tolist(),
        "logits_of_ends": translator(**inputs, labels=torch.tensor(EXPECTED["targets"])).logits[:, :, 2].tolist(),
        "greedy": translator.generate(**generate, num_beams=1).tolist(),
        "beams": translator.generate(**generate, num_beams=4, num_return_sequences=2).tolist(),
    }
