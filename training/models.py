"""The model to train and the image processor that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Resampling as PILImageResampling
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfViTConfig
from training.arguments import Mapping, argument, check_range
from training.distillation import input_size


@dataclass
class ModelArguments:
    _argument_group_name: ClassVar[str] = "Model"
    key: ClassVar[str] = "model"

    model_name_or_path: str | None = argument(
        None, help="Start from this checkpoint: any that AutoModelForImageClassification loads."
    )
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    trust_remote_code: bool = argument(False, help="Allow the code that a checkpoint brings along.")
    model_type: str = argument("hf_vit", help="From scratch: the architecture, a model type of transformers.")
    config_name: str | None = argument(
        None, help="From scratch: a variant such as deit_tiny_patch16_224, or a config of the Hub or a folder."
    )
    config_overrides: Mapping = argument(Mapping, help="Fields of the model's config: a=b,c=d or JSON.")
    image_size: list[int] | None = argument(None, help="Height and width of the model's images, or one side.")
    interpolation: str | None = argument(
        None, help="How images are resized; as in the checkpoint, or bilinear.", choices=("bilinear", "bicubic")
    )
    image_mean: list[float] | None = argument(None, help="Mean per channel, subtracted from pixels in [0, 1].")
    image_std: list[float] | None = argument(None, help="Standard deviation per channel that divides them.")

    def __post_init__(self):
        if self.model_name_or_path is not None and self.config_name is not None:
            raise ValueError("--config_name is for training from scratch, it does not go with --model_name_or_path")
        if self.image_size is not None:
            if len(self.image_size) > 2:
                raise ValueError(f"--image_size takes one or two numbers, found {self.image_size}")
            for side in self.image_size:
                check_range("image_size", side, 1)
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and len(value) not in (1, 3):
                raise ValueError(f"--{name} takes one number or one per channel (3), found {value}")
        for value in self.image_std or []:
            check_range("image_std", value, 0, open_low=True)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width)."""
        return None if self.image_size is None else (self.image_size[0], self.image_size[-1])


def build_model(arguments: ModelArguments, class_mapping: dict[str, dict]):
    """A model for the classes, from a checkpoint (with a new head where the classes differ) or from scratch.

    Raises:
        ValueError: an unknown architecture, variant or config field.
    """
    fields = dict(arguments.config_overrides)
    if arguments.size is not None and (arguments.model_name_or_path is None or "image_size" not in fields):
        height, width = arguments.size
        fields.setdefault("image_size", height if height == width else [height, width])
    if arguments.model_name_or_path is not None:
        return AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            ignore_mismatched_sizes=True,
            **class_mapping,
            **_known_fields(arguments, fields),
        )
    config = _new_config(arguments, {**fields, **class_mapping})
    return AutoModelForImageClassification.from_config(config, trust_remote_code=arguments.trust_remote_code)


def _known_fields(arguments: ModelArguments, fields: dict[str, Any]) -> dict[str, Any]:
    """Convolutional networks have no `image_size`; their config must not grow one."""
    config = AutoConfig.from_pretrained(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    return {name: value for name, value in fields.items() if name != "image_size" or hasattr(config, name)}


def _new_config(arguments: ModelArguments, fields: dict[str, Any]):
    name = arguments.config_name
    if name is None:
        known = AutoConfig.for_model(arguments.model_type)
        unknown = [field for field in fields if not hasattr(known, field)]
        if "image_size" in unknown:
            unknown.remove("image_size")
            fields = {key: value for key, value in fields.items() if key != "image_size"}
        if unknown:
            raise ValueError(f"--config_overrides: {arguments.model_type} has no field {', '.join(unknown)}")
        return AutoConfig.for_model(arguments.model_type, **fields)
    if Path(name).exists() or "/" in name:
        return AutoConfig.from_pretrained(name, trust_remote_code=arguments.trust_remote_code, **fields)
    return HfViTConfig.from_variant(name, **fields)


def build_processor(arguments: ModelArguments, model) -> ViTImageProcessor:
    """The processor saved beside the weights: resize, rescale, normalise, grey and RGBA images to RGB.

    Mean and deviation are those given, else the checkpoint's own, else 0.5.
    """
    mean, std, resample, size = [0.5] * 3, [0.5] * 3, PILImageResampling.BILINEAR, arguments.size
    if arguments.model_name_or_path is not None:
        own = AutoImageProcessor.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
        )
        mean, std, resample = own.image_mean, own.image_std, own.resample
        size = size or input_size(own)
    size = size or _pair(getattr(model.config, "image_size", 224))
    if arguments.interpolation is not None:
        resample = PILImageResampling[arguments.interpolation.upper()]
    return ViTImageProcessor(
        resample=resample,
        size={"height": size[0], "width": size[1]},
        image_mean=(arguments.image_mean or mean) * (3 if len(arguments.image_mean or mean) == 1 else 1),
        image_std=(arguments.image_std or std) * (3 if len(arguments.image_std or std) == 1 else 1),
        do_convert_rgb=True,
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
