"""The model to train, and the image processor that goes with it."""

from __future__ import annotations

from typing import Any

from PIL.Image import Resampling
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import (
    HfTransformerConfig,
    HfViTConfig,
    HfViTForImageToText,
    HfViTImageProcessor,
    HfViTImageToTextConfig,
    HfViTModel,
)
from hf_vit.files import check_model_source
from hf_vit.tasks.image_to_text.arguments import ReaderArguments
from hf_vit.tasks.models import check_fields
from hf_vit.vision.processors import InputFormat

# Of an encoder whose tokens are read: there is no pooled vector, and the norm stands before the decoder.
_READ = {"pooling": "none", "pooling_norm": None}


def build_reader(
    arguments: ReaderArguments, tokenizer: PreTrainedTokenizerBase, label_smoothing: float | None
) -> PreTrainedModel:
    """A model for the tokenizer, from a checkpoint, around a trained encoder, or from scratch.

    Raises:
        ValueError: an unknown config field, a checkpoint of another architecture, or one with fewer tokens than the
            tokenizer or with other special ones.
    """
    check_fields(dict(arguments.encoder_overrides), HfViTConfig(), argument="encoder_overrides")
    smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
    check_fields(dict(arguments.decoder_overrides), HfTransformerConfig(), argument="decoder_overrides")
    if arguments.model_name_or_path is not None:
        model = _from_checkpoint(arguments, smoothing)
        text = model.config.text_config
    else:
        text = HfTransformerConfig(
            **{
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "decoder_start_token_id": _start_of(tokenizer),
                **smoothing,
                **arguments.decoder_overrides,
            }
        )
        model = _from_parts(arguments, text)
    _check_vocabulary(text, tokenizer)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _start_of(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _from_checkpoint(arguments: ReaderArguments, smoothing: dict[str, float]) -> HfViTForImageToText:
    name: Any = arguments.model_name_or_path
    check_model_source("--model_name_or_path", name)
    origin: dict[str, Any] = {
        "trust_remote_code": arguments.trust_remote_code,
        "revision": arguments.model_revision,
    }
    config = AutoConfig.from_pretrained(name, **origin)
    if config.model_type != HfViTImageToTextConfig.model_type:
        raise ValueError(
            f"--model_name_or_path {name!r} is a {config.model_type} model, not one of image to text of ours "
            f"({HfViTImageToTextConfig.model_type}); a Vision Transformer goes into --encoder_name_or_path"
        )
    changes = {
        "vision_config": arguments.encoder_overrides,
        "text_config": {**arguments.decoder_overrides, **smoothing},
    }
    for part, fields in changes.items():
        for field, value in fields.items():
            setattr(getattr(config, part), field, value)
    config.check()
    model, info = HfViTForImageToText.from_pretrained(name, config=config, output_loading_info=True, **origin)
    _check_all_loaded("--model_name_or_path", name, info, "--encoder_overrides and --decoder_overrides")
    return model


def _check_all_loaded(flag: str, name: str, info: dict[str, Any], overrides: str) -> None:
    """Refuse a checkpoint of which layers stay random or are left out."""
    left_out = [key for key in info["unexpected_keys"] if "layers." in key]
    misfits = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]), *left_out])
    if misfits:
        raise ValueError(
            f"{flag} {name!r} does not fit the model that {overrides} describe: {', '.join(misfits[:5])}"
            f"{', ...' if len(misfits) > 5 else ''} would not be taken over"
        )


def _from_parts(arguments: ReaderArguments, text: HfTransformerConfig) -> HfViTForImageToText:
    if arguments.encoder_name_or_path is not None:
        name = arguments.encoder_name_or_path
        check_model_source("--encoder_name_or_path", name)
        kind = AutoConfig.from_pretrained(name, trust_remote_code=arguments.trust_remote_code).model_type
        if kind != HfViTConfig.model_type:
            raise ValueError(
                f"--encoder_name_or_path {name!r} is a {kind} model, not a Vision Transformer of ours: "
                "`hf-vit convert` makes one of those of timm and transformers"
            )
        own = {**arguments.encoder_overrides, **_READ}
        if arguments.image_size is not None:
            own["image_size"] = arguments.image_size
        encoder, info = HfViTModel.from_pretrained(name, add_pooling_layer=False, output_loading_info=True, **own)
        _check_all_loaded("--encoder_name_or_path", name, info, "--encoder_overrides")
        model = HfViTForImageToText(HfViTImageToTextConfig(vision_config=encoder.config, text_config=text))
        model.encoder.load_state_dict(encoder.state_dict())
        return model
    fields: dict[str, Any] = {"use_class_token": False, **_READ, **arguments.encoder_overrides}
    if arguments.image_size is not None:
        fields["image_size"] = arguments.image_size
    return HfViTForImageToText(HfViTImageToTextConfig(vision_config=HfViTConfig(**fields), text_config=text))


def _check_vocabulary(text: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    if text.vocab_size < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {text.vocab_size}: use the tokenizer that the "
            "model was made with (--tokenizer_name)"
        )
    for name in ("pad_token_id", "eos_token_id"):
        own, wanted = getattr(text, name), getattr(tokenizer, name)
        if own is not None and wanted not in (own if isinstance(own, list) else [own]):
            raise ValueError(
                f"the tokenizer's {name} is {wanted}, the model's {own}: use the tokenizer that the model was made "
                "with (--tokenizer_name)"
            )


def build_processor(arguments: ReaderArguments, config: Any) -> HfViTImageProcessor:
    """The processor saved beside the weights: the checkpoint's own, or one of the encoder's canvas, with the mean and
    the deviation that a trained encoder knows.

    Raises:
        ValueError: mean or deviation are not of as many channels as the encoder has, or a trained encoder has no image
            processor, and they are not given.
    """
    if arguments.model_name_or_path is not None:
        origin = {"trust_remote_code": arguments.trust_remote_code, "revision": arguments.model_revision}
        return AutoImageProcessor.from_pretrained(arguments.model_name_or_path, **origin)
    vision = config.vision_config
    channels = vision.num_channels
    if channels not in (1, 3):
        raise ValueError(f"num_channels of --encoder_overrides must be 1 or 3, found {channels}")
    given = {name: value for name in ("image_mean", "image_std") if (value := getattr(arguments, name)) is not None}
    statistics = {**_statistics_of_encoder(arguments, channels), **given}
    for name, value in statistics.items():
        if len(value) != channels:
            raise ValueError(f"--{name} takes one number per channel ({channels}), found {value}")
    height, width = vision.image_shape
    return HfViTImageProcessor(
        size={"height": height, "width": width},
        crop_pct=1.0,
        crop_mode="border" if arguments.letterbox else "squash",
        resample=Resampling.BICUBIC,
        do_convert_rgb=channels == 3,
        do_convert_grey=channels == 1,
        **statistics,
    )


def _statistics_of_encoder(arguments: ReaderArguments, channels: int) -> dict[str, list[float]]:
    """Mean and deviation that a trained encoder's images had; 0.5 of one from scratch."""
    name = arguments.encoder_name_or_path
    if name is None:
        return {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    if arguments.image_mean is not None and arguments.image_std is not None:
        return {}
    try:
        form = InputFormat.of(AutoImageProcessor.from_pretrained(name, trust_remote_code=arguments.trust_remote_code))
    except OSError as error:
        raise ValueError(
            f"--encoder_name_or_path {name!r} has no image processor: give --image_mean and --image_std, as it was "
            "trained with"
        ) from error
    return {"image_mean": form.mean, "image_std": form.std}
