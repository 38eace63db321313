"""Needs of a model for its images, whatever image processor it comes with, and the processor we save.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Resampling
from transformers import ViTImageProcessor

from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor


class InputFormat(NamedTuple):
    """Size in pixels, mean and standard deviation per channel of pixels in [0, 1], and how images get there.

    `crop_ratio` is the part of the resized image's short side that a centre crop keeps; None squeezes the whole image.
    With `do_flip_channel_order` the channels then become BGR. `crop_mode` is timm's: other modes than "center" squeeze
    the image before they crop it, or add borders.
    """

    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    resample: Resampling
    crop_ratio: float | None = None
    do_flip_channel_order: bool = False
    crop_mode: str = "center"

    @classmethod
    def of(cls, processor: Any) -> InputFormat:
        """The format that an image processor of transformers, or its wrapper of timm's, produces."""
        data_config = getattr(processor, "data_config", None)
        if data_config is not None:
            size = tuple(data_config["input_size"][-2:])
            resample = Resampling[data_config["interpolation"].upper()]
            ratio, mode = data_config["crop_pct"], data_config["crop_mode"]
            return cls(
                size, list(data_config["mean"]), list(data_config["std"]), resample, ratio, crop_mode=mode
            )._simplified()
        if processor.size is None:
            raise ValueError(f"{type(processor).__name__} has no fixed size: {processor.size=}")
        mean, std = _mean_and_std(processor)
        flip = bool(getattr(processor, "do_flip_channel_order", False))
        resample = Resampling(Resampling.BILINEAR if processor.resample is None else processor.resample)
        resized = {key: value for key, value in dict(processor.size).items() if value is not None}
        if not getattr(processor, "do_center_crop", False):
            ratio = getattr(processor, "crop_pct", None)  # ConvNeXt's, which crops small sizes by itself, or our own
            mode = getattr(processor, "crop_mode", "center")
            side = resized.get("shortest_edge")
            size = (resized["height"], resized["width"]) if side is None else (side, side)
            return cls(size, mean, std, resample, ratio, flip, mode)._simplified()
        crop = dict(processor.crop_size)
        size = (crop["height"], crop["width"])
        short_side = resized.get("shortest_edge") or min(resized["height"], resized["width"])
        return cls(size, mean, std, resample, min(size) / short_side, flip)

    @property
    def num_channels(self) -> int:
        """3, or 1 of grey images."""
        return len(self.mean)

    def _simplified(self) -> InputFormat:
        is_whole = self.crop_mode == "squash" and self.crop_ratio == 1
        return self._replace(crop_ratio=None, crop_mode="center") if is_whole else self

    def processor(self) -> ViTImageProcessor | HfViTImageProcessor:
        """The processor that produces this format, always in RGB, as grey and RGBA images are too, or always in grey
        where it has one channel.

        Raises:
            ValueError: `crop_mode` is not "center", which this processor cannot do.
        """
        if self.crop_mode != "center":
            raise ValueError(
                f"the checkpoint's image processor has crop_mode {self.crop_mode!r}, which is not known here: give "
                "--eval_crop_ratio for a centre crop in its place"
            )
        height, width = self.size
        crops = self.crop_ratio is not None and self.crop_ratio < 1
        form: dict[str, Any] = {"image_mean": self.mean, "image_std": self.std, "resample": self.resample}
        if self.num_channels == 1:
            crop = {"crop_mode": "center", "crop_pct": self.crop_ratio} if crops else {"crop_mode": "squash"}
            form.update({"size": {"height": height, "width": width}, "crop_pct": 1.0, **crop})
            return HfViTImageProcessor(**form, do_convert_rgb=False, do_convert_grey=True)
        size: dict[str, Any] = {"size": {"height": height, "width": width}}
        if self.crop_ratio is not None and crops:
            size = {
                "size": {"shortest_edge": round(min(self.size) / self.crop_ratio)},
                "do_center_crop": True,
                "crop_size": {"height": height, "width": width},
            }
        return ViTImageProcessor(**size, **form, do_convert_rgb=True)


def normalize(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """(B, channels, height, width) uint8 to the float32 that the processor would give."""
    if not hasattr(processor, "rescale_and_normalize"):  # one that works by Pillow
        form = InputFormat.of(processor)
        mean, std = (pixels.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (form.mean, form.std))
        return (pixels / 255 - mean) / std
    return processor.rescale_and_normalize(
        pixels,
        processor.do_rescale,
        processor.rescale_factor,
        processor.do_normalize,
        tuple(processor.image_mean),
        tuple(processor.image_std),
    )


def _mean_and_std(processor: Any) -> tuple[list[float], list[float]]:
    """Of pixels in [0, 1], for all that the processor does to their values in turn."""
    rescales = getattr(processor, "do_rescale", True)
    scale = 255 * processor.rescale_factor if rescales else 255.0
    offset = float(rescales and getattr(processor, "rescale_offset", False))  # EfficientNet's
    num_channels = len(processor.image_mean or (0, 0, 0))
    mean, std = np.zeros(num_channels) + offset, np.ones(num_channels)
    if getattr(processor, "do_normalize", True):
        mean, std = mean + processor.image_mean, std * processor.image_std
    if getattr(processor, "include_top", False):  # EfficientNet's second division
        std = std * processor.image_std
    return (mean / scale).tolist(), (std / scale).tolist()
