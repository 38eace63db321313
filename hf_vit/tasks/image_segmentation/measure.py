"""Measure what the card of a segmenter tells of its cost.

Executed in a process of its own, see `hf_vit.cards.measure`: the package is imported only once the folder's code has
been loaded, for it would take its place.
"""

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor


def measure(repo_id: str, attended: list[str]) -> dict:
    """The fields of the detector's `record.Measurement`."""
    processor = AutoImageProcessor.from_pretrained(repo_id, trust_remote_code=True)
    # The counter sees every matmul of the eager attention, whatever kernel a device would use.
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForImageSegmentation.from_pretrained(repo_id, **options).eval()
    model.requires_grad_(False)  # the counter fails on parameters that hooks cannot be put on
    pixel_values = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]  # (1, C, H, W)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixel_values=pixel_values)
    return {"input_shape": list(pixel_values.shape[1:]), "flops": counter.get_total_flops()}
