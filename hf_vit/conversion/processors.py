"""Image processors of timm's evaluation as ours and back, and processors for images of another form."""

from __future__ import annotations

import math
from typing import Any

from transformers import ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling, SizeDict

from hf_vit.models.image_processing_hf_vit import CROP_MODES, HfViTImageProcessor
from hf_vit.vision.processors import InputFormat

# timm draws "random" anew for each image; where it evaluates what was trained so, it takes the first of the two.
_RANDOM_INTERPOLATION = "bilinear"


def timm_processor(form: dict[str, Any]) -> BaseImageProcessor:
    """The image processor that does what timm's evaluation transform of this data configuration does
    (`timm.data.resolve_model_data_config`).

    Raises:
        ValueError: if mean and deviation are not those of as many channels as the images have.
    """
    channels, height, width = form["input_size"]
    mean, std = list(form["mean"]), list(form["std"])
    if not channels == len(mean) == len(std):
        raise ValueError(
            f"mean and std of the checkpoint must have a value for each of {channels} channels, got {mean} and {std}"
        )
    interpolation = _RANDOM_INTERPOLATION if form["interpolation"] == "random" else form["interpolation"]
    fields: dict[str, Any] = {
        "size": {"height": height, "width": width},
        "resample": getattr(PILImageResampling, interpolation.upper()),
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": channels == 3,
    }
    # Of the other filters, torchvision, by which this one resizes where it can, has a version of its own, or none.
    if form["crop_mode"] == "squash" and form["crop_pct"] == 1 and interpolation == "bilinear":
        return ViTImageProcessor(**fields)
    mode = form["crop_mode"] if form["crop_mode"] in CROP_MODES else "center"  # as timm does with any other
    return HfViTImageProcessor(**fields, crop_pct=form["crop_pct"], crop_mode=mode)


def timm_data_config(processor: Any) -> dict[str, Any]:
    """timm's data configuration of what an image processor does.

    Raises:
        ValueError: timm's evaluation cannot do it.
    """
    form = InputFormat.of(processor)
    if form.do_flip_channel_order:
        raise ValueError("do_flip_channel_order must be False for a processor of timm, got True")
    mode, ratio = (form.crop_mode, form.crop_ratio) if form.crop_ratio is not None else ("squash", 1.0)
    sides = min(form.size)
    if mode == "center" and math.floor(sides / ratio) != round(sides / ratio):
        ratio = sides / (round(sides / ratio) + 0.5)  # timm cuts off what the division leaves
    return {
        "input_size": (form.num_channels, *form.size),
        "mean": tuple(form.mean),
        "std": tuple(form.std),
        "interpolation": form.resample.name.lower(),
        "crop_pct": ratio,
        "crop_mode": mode,
    }


def square_processor(processor: Any, size: tuple[int, int]) -> BaseImageProcessor:
    """The processor of images of one size in the place of one that makes patches of images of any shape (NaFlex),
    equal to it for images of that shape; any other as it is."""
    if not hasattr(processor, "max_num_patches"):
        return processor
    return ViTImageProcessor(
        size={"height": size[0], "width": size[1]},
        resample=PILImageResampling(int(processor.resample)),
        image_mean=list(processor.image_mean),
        image_std=list(processor.image_std),
        do_convert_rgb=True,
    )


def adapted_processor(
    processor: Any, image_size: tuple[int, int] | None, num_channels: int | None
) -> BaseImageProcessor:
    """The processor for images of another size or number of channels: mean and deviation of one channel are
    the means of all, those of others are repeated in turn, as kernels are."""
    if image_size is not None:
        height, width = image_size
        form = InputFormat.of(processor)
        if getattr(processor, "do_center_crop", False):
            short = round(min(image_size) / (form.crop_ratio or 1.0))
            processor.size = SizeDict(shortest_edge=short)
            processor.crop_size = SizeDict(height=height, width=width)
        else:
            processor.size = SizeDict(height=height, width=width)
    if num_channels is None:
        return processor
    form = InputFormat.of(processor)
    if num_channels == 1:
        mode, ratio = (form.crop_mode, form.crop_ratio) if form.crop_ratio is not None else ("squash", 1.0)
        return HfViTImageProcessor(
            size={"height": form.size[0], "width": form.size[1]},
            image_mean=[sum(form.mean) / len(form.mean)],
            image_std=[sum(form.std) / len(form.std)],
            resample=form.resample,
            crop_mode=mode,
            crop_pct=ratio,
            do_convert_rgb=False,
            do_convert_grey=True,
        )
    for name in ("image_mean", "image_std"):
        values = list(getattr(processor, name))
        setattr(processor, name, (values * num_channels)[:num_channels])
    processor.do_convert_rgb = num_channels == 3
    return processor


__all__ = ["adapted_processor", "square_processor", "timm_data_config", "timm_processor"]
