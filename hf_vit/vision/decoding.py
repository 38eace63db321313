"""From an undecoded cell of a `datasets` image column to an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers.image_utils import load_image


def encoded(image: dict[str, Any] | None) -> bytes:
    """The file's bytes, from the cell or from the path in it; none of a null cell."""
    if image is None:
        return b""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def decode(image: dict[str, Any] | None, index: int) -> Image.Image:
    """The RGB image, opened as the image-classification pipeline opens it.

    Raises:
        ValueError: the bytes are no image; names the file, where there is one, and the sample's index.
    """
    try:
        if image is None:
            raise ValueError("its cell is empty")
        with Image.open(io.BytesIO(encoded(image))) as opened:
            return load_image(opened)
    except Exception as error:  # Pillow's decoders raise many types on broken files
        place = f" ({image['path']})" if image and image.get("path") else ""
        raise ValueError(
            f"cannot decode the image of sample {index}{place}: {error}; without --streaming, --on_bad_sample skip "
            "leaves such images out"
        ) from error


def decode_pixels(image: dict[str, Any] | None, index: int) -> torch.Tensor:
    """The image of `decode`, (3, height, width) uint8."""
    return pil_to_tensor(decode(image, index))
