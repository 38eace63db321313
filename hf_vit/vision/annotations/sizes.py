"""Sizes of images and how they are to be turned, from their files' heads."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from PIL import Image

from hf_vit.vision.decoding import encoded

_ORIENTATION = 0x0112


class ImageSize(NamedTuple):
    """The size (height, width) of the stored pixels and EXIF's orientation, 1 where there is none."""

    stored: tuple[int, int]
    orientation: int

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) as viewers and pipelines show the image."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def image_size(image: dict[str, Any] | None, index: int) -> ImageSize:
    """The size of an undecoded image, of which only the head is read.

    Raises:
        ValueError: the bytes are no image; names the file, where there is one, and the sample's index.
    """
    try:
        source = image["path"] if image is not None and image["bytes"] is None else io.BytesIO(encoded(image))
        with Image.open(source) as opened:
            orientation = opened.getexif().get(_ORIENTATION, 1)
            return ImageSize((opened.height, opened.width), orientation if orientation in range(1, 9) else 1)
    except Exception as error:  # Pillow's decoders raise many types on broken files
        name = f" ({image['path']})" if image and image.get("path") else ""
        raise ValueError(f"cannot read the image of sample {index}{name}: {error}") from error


def turned_box(box: tuple[float, float, float, float], size: ImageSize) -> tuple[float, float, float, float]:
    """A box (x, y, width, height) of the stored pixels as it lies in the image that is shown."""
    x, y, w, h = box
    height, width = size.stored
    if size.orientation in (2, 3, 7, 8):  # mirrored from left to right before a transposition
        x = width - x - w
    if size.orientation in (3, 4, 6, 7):  # mirrored from top to bottom before a transposition
        y = height - y - h
    return (y, x, h, w) if size.orientation >= 5 else (x, y, w, h)
