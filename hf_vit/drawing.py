"""Pictures with what was found in them."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_vit.extras import extra


def draw_objects(image: Image.Image, predictions: Sequence[dict[str, Any]]) -> Image.Image:
    """A copy of an image with the boxes and masks of `hf_vit.predict.predict`, their labels and scores; a label has
    the same colour in every picture."""
    with extra("train"):
        import numpy as np
        import torch
        from pycocotools import mask as coco_masks
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
        from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    pixels = pil_to_tensor(image.convert("RGB"))
    masked = [each for each in predictions if "mask" in each]
    if masked:
        encoded: list[Any] = [{**each["mask"], "counts": each["mask"]["counts"].encode()} for each in masked]
        masks = torch.from_numpy(np.stack([coco_masks.decode(each) for each in encoded])).bool()
        pixels = draw_segmentation_masks(
            pixels, masks, alpha=0.5, colors=[colour_of(each["label"]) for each in masked]
        )
    boxed = [each for each in predictions if "box" in each]
    if boxed:
        corners = [[each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for each in boxed]
        pixels = draw_bounding_boxes(
            pixels,
            torch.tensor(corners, dtype=torch.float),
            labels=[f"{each['label']} {each['score']:.2f}" for each in boxed],
            colors=[colour_of(each["label"]) for each in boxed],
            width=max(round(max(image.size) / 400), 1),
        )
    return to_pil_image(pixels)


def colour_of(label: str) -> tuple[int, int, int]:
    """A strong colour that depends on the label alone."""
    hue = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2], "big") / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
