"""What a model wants of its images, whatever image processor it comes with, and the processor we save."""

from __future__ import annotations

from typing import Any, NamedTuple

from PIL.Image import Resampling
from transformers import ViTImageProcessor


class InputFormat(NamedTuple):
    """Size in pixels, mean and standard deviation per channel of pixels in [0, 1], and how images get there.

    `crop_ratio` is the part of the resized image's short side that a centre crop keeps; None squeezes the whole image.
    """

    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    resample: Resampling
    crop_ratio: float | None = None

    @classmethod
    def of(cls, processor: Any) -> InputFormat:
        """The format that an image processor of transformers, or its wrapper of timm's, produces."""
        data_config = getattr(processor, "data_config", None)
        if data_config is not None:
            size = tuple(data_config["input_size"][-2:])
            resample = Resampling[data_config["interpolation"].upper()]
            return cls(size, list(data_config["mean"]), list(data_config["std"]), resample, data_config["crop_pct"])
        mean, std = list(processor.image_mean), list(processor.image_std)
        resample = Resampling(Resampling.BILINEAR if processor.resample is None else processor.resample)
        resized = {key: value for key, value in dict(processor.size).items() if value is not None}
        if not getattr(processor, "do_center_crop", False):
            ratio = getattr(processor, "crop_pct", None)  # ConvNeXt's, which crops small sizes by itself
            side = resized.get("shortest_edge")
            size = (resized["height"], resized["width"]) if side is None else (side, side)
            return cls(size, mean, std, resample, ratio)
        crop = dict(processor.crop_size)
        size = (crop["height"], crop["width"])
        short_side = resized.get("shortest_edge") or min(resized["height"], resized["width"])
        return cls(size, mean, std, resample, min(size) / short_side)

    def processor(self) -> ViTImageProcessor:
        """The processor that produces this format; grey and RGBA images become RGB."""
        height, width = self.size
        size: dict[str, Any] = {"size": {"height": height, "width": width}}
        if self.crop_ratio is not None and self.crop_ratio < 1:
            size = {
                "size": {"shortest_edge": round(min(self.size) / self.crop_ratio)},
                "do_center_crop": True,
                "crop_size": {"height": height, "width": width},
            }
        return ViTImageProcessor(
            **size, image_mean=self.mean, image_std=self.std, resample=self.resample, do_convert_rgb=True
        )
