"""Loads models and compares their outputs: what `FreshProcess.load` has the other process execute."""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

reference: dict[str, torch.Tensor] = {}  # outputs of the first source, by Auto class


def inputs_for(model: Any, source: str, revision: str | None) -> dict:
    if model.main_input_name == "pixel_values":
        picture = Image.linear_gradient("L").convert("RGB")
        return dict(AutoImageProcessor.from_pretrained(source, revision=revision)(picture, return_tensors="pt"))
    tokens = torch.arange(8)[None] % model.config.vocab_size  # (1, 8)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})}


def first_tensor(output: Any) -> torch.Tensor:
    values = (value[0] if isinstance(value, tuple) else value for value in output.values())
    return next(value for value in values if isinstance(value, torch.Tensor))


def outputs_of(source: str, revision: str | None) -> dict:
    """The Auto classes that load the source, and the first output of those whose weights are all in it."""
    code = {"trust_remote_code": True, "code_revision": revision}
    config = AutoConfig.from_pretrained(source, revision=revision, **code)
    auto_map = getattr(config, "auto_map", None) or {}
    options = {"revision": revision, **(code if auto_map else {})}  # classes of transformers take no code_revision
    named = [name for name in auto_map if "Model" in name or name == "AutoBackbone"]
    if Path(source).is_dir():  # AutoBackbone takes ids of the Hub alone
        named = [name for name in named if name != "AutoBackbone"]
    outputs: dict[str, torch.Tensor | None] = {}
    for name in named or config.architectures:
        loader = getattr(transformers, name)
        model, report = loader.from_pretrained(source, output_loading_info=True, dtype=torch.float32, **options)
        outputs[name] = None
        if not report["missing_keys"]:
            with torch.inference_mode():
                outputs[name] = first_tensor(model.eval()(**inputs_for(model, source, revision)))
    return outputs


def difference(outputs: dict) -> float:
    """The largest difference to the reference; infinite when an output is missing or of another shape."""
    largest = 0.0
    for name, expected in reference.items():
        output = outputs.get(name)
        if output is None or output.shape != expected.shape:
            return float("inf")
        largest = max(largest, (output - expected).abs().max().item())
    return largest


def load(source: str, revision: str | None) -> dict:
    """The fields of `Loaded`."""
    found = outputs_of(source, revision)
    if not reference:
        reference.update({name: output for name, output in found.items() if output is not None})
    return {"classes": list(found), "difference": difference(found)}
