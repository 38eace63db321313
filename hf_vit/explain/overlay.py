"""Maps of patches over the image that they are of."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_vit.extras import extra

with extra("hub"):
    import matplotlib
    from PIL import Image

_FAINTEST, _STRONGEST = 0.1, 0.7  # opacity of the least and of the largest value


def overlay(image: Any, values: Any, signed: bool = False) -> Image.Image:
    """A map laid over the grey picture of an image: the stronger a patch, the less of the image is left under it.

    Args:
        image: `PIL.Image.Image`, or colours in [0, 1], shape (height, width, 3).
        values: shape (rows, columns); the patches cover the image.
        signed: orange for values above 0, purple for those below, the largest in magnitude the strongest. Otherwise
            from the least to the largest value in the colours of `viridis`.

    Returns:
        Image of the size of `image`, or of at least 8 pixels a patch.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray((255 * np.asarray(image)).round().astype(np.uint8))
    numbers = np.asarray(values, dtype=float)
    rows, columns = numbers.shape
    if signed:
        shares = numbers / (np.abs(numbers).max() or 1)
        colours, strength = matplotlib.colormaps["PuOr_r"](0.5 + 0.5 * shares), np.abs(shares)
    else:
        low, high = numbers.min(), numbers.max()
        shares = (numbers - low) / ((high - low) or 1)
        colours, strength = matplotlib.colormaps["viridis"](0.15 + 0.85 * shares), shares
    colours[..., 3] = _FAINTEST + (_STRONGEST - _FAINTEST) * strength
    scale = max(1, -(-8 * columns // image.width), -(-8 * rows // image.height))
    size = (scale * image.width, scale * image.height)
    under = image.convert("L").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    layer = Image.fromarray((255 * colours).round().astype(np.uint8), "RGBA").resize(size, Image.Resampling.NEAREST)
    return Image.alpha_composite(under.convert("RGBA"), layer).convert("RGB")


__all__ = ["overlay"]
