"""Image processors of timm's evaluation as ours."""

from __future__ import annotations

from typing import Any

from transformers import ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from hf_vit.models.image_processing_hf_vit import CROP_MODES, HfViTImageProcessor

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
        "resample": PILImageResampling[interpolation.upper()],
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": channels == 3,
    }
    # Of the other filters, torchvision, by which this one resizes where it can, has a version of its own, or none.
    if form["crop_mode"] == "squash" and form["crop_pct"] == 1 and interpolation == "bilinear":
        return ViTImageProcessor(**fields)
    mode = form["crop_mode"] if form["crop_mode"] in CROP_MODES else "center"  # as timm does with any other
    return HfViTImageProcessor(**fields, crop_pct=form["crop_pct"], crop_mode=mode)


__all__ = ["timm_processor"]
