"""From an undecoded cell of a `datasets` image column to an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers.image_utils import load_image

COLOUR_MODES = {1: "L", 3: "RGB"}  # by the number of channels
_BITS_TAG, _FORMAT_TAG, _SIGNED = 258, 339, 2  # of TIFF


def encoded(image: dict[str, Any] | None) -> bytes:
    """The file's bytes, from the cell or from the path in it; none of a null cell."""
    if image is None:
        return b""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def open_stored(image: dict[str, Any] | None, index: int) -> Image.Image:
    """The image as it is stored, no colours or sizes changed: of maps whose values are numbers.

    Raises:
        ValueError: the bytes are no image; names the file, where there is one, and the sample's index.
    """
    try:
        opened = Image.open(io.BytesIO(encoded(image)))
        opened.load()
    except Exception as error:  # Pillow's decoders raise many types on broken files
        raise ValueError(f"cannot decode the map of sample {index}{_place(image)}: {error}") from error
    return opened


def decode(image: dict[str, Any] | None, index: int, num_channels: int = 3) -> Image.Image:
    """The RGB image, opened as the image-classification pipeline opens it, or with one channel its grey one.

    Samples of more than 8 bits, which Pillow would clip, are scaled by the range of their type: 65,535 of 16 bits.

    Raises:
        ValueError: the bytes are no image, or its samples have no range; names the file, where there is one, and the
            sample's index.
    """
    try:
        if image is None:
            raise ValueError("its cell is empty")
        with Image.open(io.BytesIO(encoded(image))) as opened:
            levels = num_levels(opened)
            colours = load_image(opened if levels == 256 else _eight_bits(opened, levels))
            return colours if num_channels == 3 else colours.convert(COLOUR_MODES[num_channels])
    except Exception as error:  # Pillow's decoders raise many types on broken files
        raise ValueError(
            f"cannot decode the image of sample {index}{_place(image)}: {error}; without --streaming, "
            "--on_bad_sample skip leaves such images out"
        ) from error


def _place(image: dict[str, Any] | None) -> str:
    return f" ({image['path']})" if image and image.get("path") else ""


def decode_pixels(image: dict[str, Any] | None, index: int, num_channels: int = 3) -> torch.Tensor:
    """The image of `decode`, (num_channels, height, width) uint8."""
    return pil_to_tensor(decode(image, index, num_channels))


def num_levels(image: Image.Image) -> int:
    """How many values a sample of an opened image can have: 256, or more of a grey PNG, TIFF or PGM of 16 bits.

    Raises:
        ValueError: the samples are floating-point numbers, whose range is not known.
    """
    if image.mode.startswith("I;16"):
        return 2**16
    if image.mode == "F":
        raise ValueError("its samples are floating-point numbers, whose range is not known: save them as integers")
    if image.mode != "I":
        return 256
    # Pillow also keeps samples of 16 bits in 32, as those of PGM and signed ones.
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (16,))[0]
    return 2 ** (bits - (tags.get(_FORMAT_TAG, (1,))[0] == _SIGNED))


def _eight_bits(image: Image.Image, levels: int) -> Image.Image:
    values = np.asarray(image).astype(np.float64) * (255 / (levels - 1))
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
