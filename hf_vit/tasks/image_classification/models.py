"""The model to train and the image processor that goes with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Resampling
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfViTConfig
from hf_vit.config import Options, argument, check_range
from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor
from hf_vit.tasks.models import check_convert, check_fields, checkpoint
from hf_vit.vision.decoding import COLOUR_MODES
from hf_vit.vision.processors import InputFormat
from hf_vit.vision.resolution import change_image_size


@dataclass
class ModelArguments:
    _argument_group_name: ClassVar[str] = "Model"
    # What a recipe says of another architecture does not fit the one that is named instead.
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "model_name_or_path": (
            *("config_name", "model_type", "config_overrides"),
            # A checkpoint has its own.
            *("image_size", "image_mean", "image_std", "interpolation", "eval_crop_ratio"),
        ),
        "model_type": ("config_name", "model_name_or_path", "config_overrides"),
        "config_name": ("model_name_or_path", "model_type"),
    }

    model_name_or_path: str | None = argument(
        None, help="Start from this checkpoint: any that AutoModelForImageClassification loads."
    )
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    convert: bool = argument(
        False, help="Make a checkpoint of timm or transformers a model of this package, so that all its options apply."
    )
    trust_remote_code: bool = argument(False, help="Allow the code that a checkpoint brings along.")
    model_type: str = argument("hf_vit", help="From scratch: the architecture, a model type of transformers.")
    config_name: str | None = argument(
        None, help="From scratch: a variant such as deit_tiny_patch16_224, or a config of the Hub or a folder."
    )
    config_overrides: Options = argument(Options, help="Fields of the model's config: a=b,c=d or JSON.")
    image_size: list[int] | None = argument(None, help="Height and width of the model's images, or one side.")
    interpolation: str | None = argument(
        None, help="How images are resized; as in the checkpoint, or bilinear.", choices=("bilinear", "bicubic")
    )
    image_mean: list[float] | None = argument(None, help="Mean per channel, subtracted from pixels in [0, 1].")
    image_std: list[float] | None = argument(None, help="Standard deviation per channel that divides them.")

    eval_crop_ratio: float | None = argument(
        None, help="Evaluate on a centre crop: its part of the resized image's short side; else on the whole image."
    )
    train_only: str | None = argument(
        None, help="Freeze the rest: train the classifier, or it and the attention.", choices=("head", "attention")
    )
    gradient_checkpointing: bool = argument(False, help="Recompute activations to save memory.")

    def __post_init__(self) -> None:
        check_convert(self)
        check_range("eval_crop_ratio", self.eval_crop_ratio, 0, 1, open_low=True)
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


def build_model(
    arguments: ModelArguments, class_mapping: dict[str, dict], labels_patches: bool = False
) -> PreTrainedModel:
    """A model for the classes, from a checkpoint (with a new head where the classes differ) or from scratch.

    Args:
        labels_patches: with a head for labels of patches.

    Raises:
        ValueError: an unknown architecture, variant or config field, weights that do not fit, or a head that nothing
            would train.
    """
    if labels_patches:
        overrides = Options({**arguments.config_overrides, "use_token_labeling_head": True})
        arguments = replace(arguments, config_overrides=overrides)
    if "problem_type" in arguments.config_overrides:
        raise ValueError("--config_overrides: problem_type cannot be set, the classes of this task exclude each other")
    model = _pretrained(arguments, class_mapping) if arguments.model_name_or_path else _new(arguments, class_mapping)
    if getattr(model.config, "use_token_labeling_head", False) != labels_patches:
        raise ValueError(
            "a model with a token labeling head needs --token_label_annotator or --token_label_column_name; without "
            "the head: --config_overrides use_token_labeling_head=false"
        )
    if num_channels_of(model) not in COLOUR_MODES:
        raise ValueError(
            f"num_channels must be 3, of colour images, or 1, of grey ones, found {num_channels_of(model)}: images of "
            "other channels cannot be read here"
        )
    model.config.problem_type = None  # a checkpoint's own would be read by what applies the saved model
    if arguments.train_only is not None:
        freeze(model, arguments.train_only)
    if arguments.gradient_checkpointing:
        # The older of the two names is deprecated where there is the newer.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return model


def _size_field(arguments: ModelArguments) -> dict[str, Any]:
    if arguments.size is None:
        return {}
    height, width = arguments.size
    return {"image_size": height if height == width else [height, width]}


def _new(arguments: ModelArguments, class_mapping: dict[str, dict]) -> PreTrainedModel:
    name, fields = arguments.config_name, {**arguments.config_overrides, **_size_field(arguments)}
    if name is None:
        default = AutoConfig.for_model(arguments.model_type)
        fields = fields if hasattr(default, "image_size") else dict(arguments.config_overrides)
        check_fields(fields, default)
        config = AutoConfig.for_model(arguments.model_type, **fields, **class_mapping)
    elif Path(name).exists() or "/" in name:
        options = {"trust_remote_code": arguments.trust_remote_code, "revision": arguments.model_revision}
        config = AutoConfig.from_pretrained(name, **options)
        fields = fields if hasattr(config, "image_size") else dict(arguments.config_overrides)
        check_fields(fields, config)
        config = AutoConfig.from_pretrained(name, **options, **fields, **class_mapping)
    else:
        config = HfViTConfig.from_variant(name, **fields, **class_mapping)
    return AutoModelForImageClassification.from_config(config, trust_remote_code=arguments.trust_remote_code)


def _pretrained(arguments: ModelArguments, class_mapping: dict[str, dict]) -> PreTrainedModel:
    name, revision = checkpoint(arguments)
    options = {"trust_remote_code": arguments.trust_remote_code, "revision": revision}
    fields = dict(arguments.config_overrides)
    config = AutoConfig.from_pretrained(name, **options)
    check_fields(fields, config, is_checkpoint=True)
    resamples_itself = config.model_type == HfViTConfig.model_type
    adds_token = bool(fields.get("use_distillation_token")) and not config.use_distillation_token
    if adds_token:
        del fields["use_distillation_token"]
    if resamples_itself:
        fields = {**fields, **_size_field(arguments)}
    config = AutoConfig.from_pretrained(name, **options, **fields)
    config.id2label, config.label2id = class_mapping["id2label"], class_mapping["label2id"]
    if config.model_type == "timm_wrapper" and config.model_args:
        config.model_args.pop("num_classes", None)  # which transformers gives timm itself
    model, info = AutoModelForImageClassification.from_pretrained(
        name, **options, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    own = {id(parameter) for parameter in head_parameters(model)}
    head = {key for key, parameter in model.named_parameters() if id(parameter) in own}
    misfits = [key for key, *_ in info["mismatched_keys"] if key not in head]
    if misfits:
        raise ValueError(
            f"--model_name_or_path {arguments.model_name_or_path!r} is of another architecture: "
            f"{', '.join(misfits[:5])} do not fit"
        )
    if arguments.size is not None and not resamples_itself:
        change_image_size(model, arguments.size)
    return with_distillation_token(model) if adds_token else model


def with_distillation_token(model: PreTrainedModel) -> PreTrainedModel:
    """The same Vision Transformer of this package with a distillation token and its head (DeiT, arXiv 2012.12877),
    which are random; where the tokens before the patches have learnt positions, its own starts at zero."""
    config = copy.deepcopy(model.config)
    config.use_distillation_token = True
    taught = type(model)(config)
    weights = model.state_dict()
    for name, table in taught.named_parameters():
        if name.endswith(".prefix") and len(table) == len(weights[name]) + 1:
            has_all = len(table) == config.num_layer_prefix_tokens
            row = config.distillation_token_index if has_all else int(config.use_class_token)
            above, below = weights[name][:row], weights[name][row:]
            weights[name] = torch.cat((above, torch.zeros_like(table[:1]), below))
    taught.load_state_dict(weights, strict=False)
    return taught


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters of the classifier: those outside the base model.

    Raises:
        ValueError: the model does not say which part of it is the classifier.
    """
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None:
        return list(timm_model.get_classifier().parameters())
    body = {id(parameter) for parameter in model.base_model.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in body]
    if not head:
        raise ValueError(f"{type(model).__name__} does not say which of its parameters are the classifier's")
    return head


def freeze(model: PreTrainedModel, train_only: str) -> None:
    """Leaves the classifier trainable and, for `attention`, the attention layers (arXiv 2203.09795)."""
    model.requires_grad_(False)
    for parameter in head_parameters(model):
        parameter.requires_grad_(True)
    if train_only == "attention":
        layers = [
            module for name, module in model.named_modules() if re.fullmatch(r"attn|attention", name.split(".")[-1])
        ]
        if not layers:
            raise ValueError(f"--train_only attention: {type(model).__name__} has no attention layers")
        for layer in layers:
            layer.requires_grad_(True)


def num_channels_of(model: PreTrainedModel) -> int:
    """Channels of the images that a model takes."""
    return getattr(model.config, "num_channels", 3)


def build_processor(arguments: ModelArguments, model: PreTrainedModel) -> ViTImageProcessor | HfViTImageProcessor:
    """The processor saved beside the weights.

    What is not given is the checkpoint's own, or: the config's size, mean and deviation 0.5, bilinear, no crop.

    Raises:
        ValueError: the checkpoint has no processor, and not all of it is given.
    """
    size = getattr(model.config, "image_size", 224)
    size = (size, size) if isinstance(size, int) else (size[0], size[1])
    num_channels = num_channels_of(model)
    form = InputFormat(size, [0.5] * num_channels, [0.5] * num_channels, Resampling.BILINEAR)
    if arguments.model_name_or_path is not None:
        form = _format_of_checkpoint(arguments) or form
        if form.num_channels != num_channels:
            raise ValueError(
                f"--model_name_or_path {arguments.model_name_or_path!r} takes images of {num_channels} channels, and "
                f"its image processor makes {form.num_channels}"
            )
    given: dict[str, Any] = {
        "size": arguments.size,
        "mean": _per_channel(arguments.image_mean, num_channels),
        "std": _per_channel(arguments.image_std, num_channels),
        "resample": arguments.interpolation and Resampling[arguments.interpolation.upper()],
        "crop_ratio": arguments.eval_crop_ratio,
        "crop_mode": None if arguments.eval_crop_ratio is None else "center",
    }
    return form._replace(**{name: value for name, value in given.items() if value is not None}).processor()


def _format_of_checkpoint(arguments: ModelArguments) -> InputFormat | None:
    """None where there is no processor, and the arguments say all that it would."""
    name, revision = checkpoint(arguments)
    options = {"trust_remote_code": arguments.trust_remote_code, "revision": revision}
    try:
        return InputFormat.of(AutoImageProcessor.from_pretrained(name, **options))
    except OSError as error:
        missing = [each for each in ("image_mean", "image_std") if getattr(arguments, each) is None]
        if missing:
            flags = " and ".join(f"--{each}" for each in missing)
            raise ValueError(
                f"--model_name_or_path {name!r} has no image processor: give {flags}, as it was trained with (and "
                "--interpolation and --image_size where they are not bilinear and the config's)"
            ) from error
        return None


def _per_channel(values: list[float] | None, num_channels: int) -> list[float] | None:
    if values is None or len(values) == num_channels:
        return values
    return values * num_channels if len(values) == 1 else [sum(values) / len(values)]


def describe_processor(arguments: ModelArguments, processor: Any, command: Sequence[str]) -> str:
    """Say what happens to images before the model sees them, and whose choice it was: a flag's of the command line,
    the recipe's, the checkpoint's."""
    form = InputFormat.of(processor)
    base = arguments.model_name_or_path
    height, width = form.size
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (form.mean, form.std))
    crop = f", the middle {form.crop_ratio:.3g} of it" if form.crop_ratio is not None and form.crop_ratio < 1 else ""
    typed = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in command if word.startswith("--")}
    colour = ", grey" if form.num_channels == 1 else ""

    def whose(name: str) -> str:
        if getattr(arguments, name) is not None:
            return f"--{name}" if name in typed else "the recipe's"
        return f"that of {base}" if base is not None else "the default"

    return (
        f"{height} x {width} pixels{colour} ({whose('image_size')}){crop}, {form.resample.name.lower()} "
        f"({whose('interpolation')}); "
        f"mean {mean} ({whose('image_mean')}), deviation {std} ({whose('image_std')})"
    )
