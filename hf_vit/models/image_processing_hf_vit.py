"""Image processor for photographs of any shape, as timm evaluates its models."""

import math

import torch
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


class HfViTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`):
        Side of the crop in parts of the resized image's, above 0.
    crop_mode (`str`, *optional*, defaults to `self.crop_mode`):
        How a photograph is resized: "center", "squash" or "border".
    """

    crop_pct: float
    crop_mode: str


class HfViTImageProcessor(PilBackend):
    r"""
    Resizes and crops photographs as timm's evaluation does (`timm.data.transforms_imagenet_eval`), by Pillow whether
    torchvision is there or not, and normalises them. What existing processors call a centre crop starts up to a pixel
    elsewhere in oblong photographs, and none of them adds borders.

    (height, width) of any size -> `pixel_values` of shape (batch, channels, `size["height"]`, `size["width"]`)

    Args:
        size (`dict`): `height` and `width` of the result in pixels.
        crop_pct (`float`): the photograph is resized to `size / crop_pct`, of which the middle is taken; above 0.
        crop_mode (`str`): `"center"`: the photograph covers that size, its ratio kept, and what sticks out is lost.
            `"squash"`: it is stretched to that size. `"border"`: it fits into that size, its ratio kept, and borders
            of the mean colour fill what is left.
        resample (`PILImageResampling`): any of Pillow's filters.

    Other arguments are those of transformers' image processors.

    Raises:
        ValueError: if `size`, `crop_pct` or `crop_mode` is none of these.
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

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        _check(self.size, self.crop_pct, self.crop_mode)

    def _validate_preprocess_kwargs(self, *, size, crop_pct, crop_mode, **kwargs):
        _check(size, crop_pct, crop_mode)
        super()._validate_preprocess_kwargs(size=size, **kwargs)

    def _preprocess(self, images, *, do_resize, size, resample, crop_pct, crop_mode, do_rescale, image_mean, **kwargs):
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


def _check(size, crop_pct: float, crop_mode: str):
    if not (size and size.height and size.width):
        raise ValueError(f"size must have height and width, got {size}")
    if not crop_pct > 0:
        raise ValueError(f"crop_pct must be above 0, got {crop_pct}")
    if crop_mode not in CROP_MODES:
        raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {crop_mode!r}")


def _fit(image, target: tuple[int, int], resample: int, crop_pct: float, crop_mode: str, fill: list[float]):
    """A numpy array of shape (channels, height, width), resized and cropped to (channels, *target)."""
    scaled = tuple(math.floor(length / crop_pct) for length in target)
    new_size = _resized(image.shape[-2:], scaled, crop_mode)
    first = ChannelDimension.FIRST
    image = resize(image, new_size, resample=resample, data_format=first, input_data_format=first)
    (rows, inner_rows), (columns, inner_columns) = map(_centred, image.shape[-2:], target)
    if tuple(image.shape[-2:]) == target:
        return image
    pixels = torch.from_numpy(image)
    canvas = pixels.new_tensor(fill)[:, None, None].repeat(1, *target)
    canvas[:, inner_rows, inner_columns] = pixels[:, rows, columns]
    return canvas.numpy()


def _resized(size: tuple[int, int], scaled: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) to which an image of `size` is resized, for the crop's size in its scale `scaled`."""
    height, width = size
    if crop_mode == "squash":
        return scaled
    if crop_mode == "center" and scaled[0] == scaled[1]:
        short, long = scaled[0], int(scaled[0] * max(size) / min(size))
        return (long, short) if width <= height else (short, long)
    ratios = height / scaled[0], width / scaled[1]
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _centred(length: int, target: int) -> tuple[slice, slice]:
    """Which pixels of a side of `length` are taken, and where in a side of `target` they go."""
    if length >= target:
        start = round((length - target) / 2)
        return slice(start, start + target), slice(0, target)
    start = (target - length) // 2
    return slice(0, length), slice(start, start + length)


HfViTImageProcessor.register_for_auto_class()

__all__ = ["CROP_MODES", "HfViTImageProcessor"]
