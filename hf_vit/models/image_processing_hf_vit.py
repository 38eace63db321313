"""Image processor for photographs of any shape, as timm evaluates its models."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import resize
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs

CROP_MODES = ("center", "squash", "border")
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601), as Pillow weighs them


class HfViTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`):
        Side of the crop in parts of the resized image's, above 0.
    crop_mode (`str`, *optional*, defaults to `self.crop_mode`):
        How a photograph is resized: "center", "squash" or "border".
    do_convert_grey (`bool`, *optional*, defaults to `self.do_convert_grey`):
        Set when the processor is made: whether it makes images of one channel.
    """

    crop_pct: float
    crop_mode: str
    do_convert_grey: bool


class HfViTImageProcessor(PilBackend):
    r"""
    Resizes and crops photographs as timm's evaluation does (`timm.data.transforms_imagenet_eval`), by Pillow whether
    torchvision is there or not, and normalises them. What existing processors call a centre crop starts up to a pixel
    elsewhere in oblong photographs, and none of them adds borders.

    (height, width) of any size -> `pixel_values` of shape (batch, channels, `size["height"]`, `size["width"]`), where
    channels are 3, or 1 with `do_convert_grey`

    Args:
        size (`dict`): `height` and `width` of the result in pixels.
        crop_pct (`float`): the photograph is resized to `size / crop_pct`, of which the middle is taken; above 0.
        crop_mode (`str`): `"center"`: the photograph covers that size, its ratio kept, and what sticks out is lost.
            `"squash"`: it is stretched to that size. `"border"`: it fits into that size, its ratio kept, and borders
            of the mean colour fill what is left.
        resample (`PILImageResampling`): any of Pillow's filters.
        do_convert_grey (`bool`): make grey images, in one channel, of all there are; samples of 16 bits are scaled by
            65,535, where Pillow would clip them (and `pipeline` does before a processor sees them). `image_mean` and
            `image_std` then have one number each.

    Other arguments are those of transformers' image processors.

    Raises:
        ValueError: if `size`, `crop_pct` or `crop_mode` is none of these, or `image_mean` has not one number for each
            channel.
    """

    valid_kwargs = HfViTImageProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    crop_pct = 0.875
    crop_mode = "center"
    do_convert_grey = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check(self.size, self.crop_pct, self.crop_mode)
        if self.do_convert_grey and not len(self.image_mean) == len(self.image_std) == 1:
            raise ValueError(f"image_mean and image_std of grey images have one number each, got {self.image_mean}")

    def process_image(
        self, image: Any, do_convert_rgb: Any = None, input_data_format: Any = None, **kwargs: Any
    ) -> Any:
        kwargs["input_data_format"] = input_data_format
        if not self.do_convert_grey:
            return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
        if isinstance(image, Image.Image):
            return _grey(image)
        return _luma(super().process_image(image, do_convert_rgb=False, **kwargs))

    def _validate_preprocess_kwargs(  # type: ignore[override]  # called with keywords
        self, *, size: Any, crop_pct: Any, crop_mode: Any, **kwargs: Any
    ) -> None:
        _check(size, crop_pct, crop_mode)
        super()._validate_preprocess_kwargs(size=size, **kwargs)

    def _preprocess(  # type: ignore[override]  # called with keywords
        self,
        images: Any,
        *,
        do_resize: Any,
        size: Any,
        resample: Any,
        crop_pct: Any,
        crop_mode: Any,
        do_rescale: Any,
        image_mean: Any,
        **kwargs: Any,
    ) -> Any:
        kwargs.pop("do_convert_grey", None)
        if do_resize:
            fill = [0] * len(image_mean)
            if crop_mode == "border":
                levels = [round(255 * value) for value in image_mean]
                fill = levels if do_rescale else [level / 255 for level in levels]
            target = (size.height, size.width)
            images = [_fit(image, target, resample, crop_pct, crop_mode, fill) for image in images]
        return super()._preprocess(
            images,
            do_resize=False,
            size=size,
            resample=resample,
            do_rescale=do_rescale,
            image_mean=image_mean,
            **kwargs,
        )


def _check(size: Any, crop_pct: float, crop_mode: str) -> None:
    if not (size and size.height and size.width):
        raise ValueError(f"size must have height and width, got {size}")
    if not crop_pct > 0:
        raise ValueError(f"crop_pct must be above 0, got {crop_pct}")
    if crop_mode not in CROP_MODES:
        raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {crop_mode!r}")


def _grey(image: Image.Image) -> np.ndarray:
    """(1, height, width) uint8."""
    if image.mode.startswith("I;16"):
        return np.rint(np.asarray(image)[None] / 257).astype(np.uint8)
    return np.asarray(image.convert("RGB").convert("L"))[None]


def _luma(image: np.ndarray) -> np.ndarray:
    """An image of one or three channels (channels, height, width) in one, of the same type."""
    if image.shape[0] == 1:
        return image
    if image.shape[0] != len(_LUMA):
        raise ValueError(f"images must have 1 or 3 channels, got {image.shape[0]}")
    grey = np.tensordot(_LUMA, image, 1)[None]
    return (grey if np.issubdtype(image.dtype, np.floating) else np.rint(grey)).astype(image.dtype)


def _fit(
    image: Any, target: tuple[int, int], resample: Any, crop_pct: float, crop_mode: str, fill: Sequence[float]
) -> Any:
    """A numpy array of shape (channels, height, width), resized and cropped to (channels, *target)."""
    scaled = math.floor(target[0] / crop_pct), math.floor(target[1] / crop_pct)
    new_size = resized(image.shape[-2:], scaled, crop_mode)
    first = ChannelDimension.FIRST
    # Pillow takes a second or fourth channel for opacity, by which it would weigh the others, and knows no more.
    parts = [image] if image.shape[0] in (1, 3) else np.split(image, image.shape[0])
    options = {"resample": resample, "data_format": first, "input_data_format": first}
    image = np.concatenate([resize(part, new_size, **options) for part in parts])
    (rows, inner_rows), (columns, inner_columns) = map(centred, image.shape[-2:], target)
    if tuple(image.shape[-2:]) == target:
        return image
    pixels = torch.from_numpy(image)
    canvas = pixels.new_tensor(fill)[:, None, None].repeat(1, *target)
    canvas[:, inner_rows, inner_columns] = pixels[:, rows, columns]
    return canvas.numpy()


def resized(size: tuple[int, int], scaled: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) to which an image of `size` is resized, for the crop's size in its scale `scaled`."""
    height, width = size
    if crop_mode == "squash":
        return scaled
    if crop_mode == "center" and scaled[0] == scaled[1]:
        short, long = scaled[0], int(scaled[0] * max(size) / min(size))
        return (long, short) if width <= height else (short, long)
    ratios = height / scaled[0], width / scaled[1]
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def centred(length: int, target: int) -> tuple[slice, slice]:
    """Which pixels of a side of `length` are taken, and where in a side of `target` they go."""
    if length >= target:
        start = round((length - target) / 2)
        return slice(start, start + target), slice(0, target)
    start = (target - length) // 2
    return slice(0, length), slice(start, start + length)


HfViTImageProcessor.register_for_auto_class()

__all__ = ["CROP_MODES", "HfViTImageProcessor", "centred", "resized"]
