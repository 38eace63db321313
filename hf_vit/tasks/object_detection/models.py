"""The detector to train and the image processor that goes with it."""

from __future__ import annotations

import math
import statistics
from typing import Any

from PIL.Image import Resampling
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfDetrConfig, HfViTConfig
from hf_vit.models.image_processing_hf_detr import HfDetrImageProcessor, median_canvas
from hf_vit.tasks.models import check_fields
from hf_vit.tasks.object_detection.arguments import DetectorArguments
from hf_vit.tasks.object_detection.data import AnnotatedData

DEFAULT_NUM_PIXELS = 384 * 288  # of the canvas


def canvas_of(arguments: DetectorArguments, data: AnnotatedData) -> tuple[int, int]:
    """The canvas (height, width): that of the checkpoint, the one that is asked for, or one of the median aspect of
    the training images.

    Raises:
        ValueError: it is no multiple of the backbone's patch.
    """
    if arguments.model_name_or_path is not None:
        size = _processor_of(arguments).size
        return size["height"], size["width"]
    side = patch_side(arguments)
    train = data.splits["train"]
    sizes = zip(train["height"][:], train["width"][:])
    canvas = arguments.size or median_canvas(sizes, DEFAULT_NUM_PIXELS, side)
    if any(length % side for length in canvas):
        raise ValueError(f"--image_size must be multiples of the patch ({side} pixels), found {list(canvas)}")
    return canvas


def patch_side(arguments: DetectorArguments) -> int:
    """The number that a canvas' sides must be multiples of."""
    name = arguments.model_name_or_path or arguments.backbone_name_or_path
    if name is None:
        return _side(arguments.backbone_overrides.get("patch_size", HfViTConfig().patch_size))
    config = AutoConfig.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    return _side(getattr(getattr(config, "backbone_config", config), "patch_size", None))


def mask_stride(config: Any) -> int:
    """The pixels of the canvas to a pixel of the masks that a detector predicts, at whose resolution they are learnt:
    at that of the canvas, masks would cost more than the model. 1 of models other than ours."""
    if config.model_type != HfDetrConfig.model_type:
        return 1
    return max(1, _side(getattr(config.backbone_config, "patch_size", None)) // 2**config.mask_upsampling_blocks)


def _side(patch_size: Any) -> int:
    side = max(patch_size) if isinstance(patch_size, (list, tuple)) else patch_size
    return side or 32


def build_detector(
    arguments: DetectorArguments, canvas: tuple[int, int], data: AnnotatedData, model_class: type[PreTrainedModel]
) -> PreTrainedModel:
    """A detector of the data's classes, from a checkpoint (with new heads where the classes differ), around a trained
    backbone, or from scratch.

    Raises:
        ValueError: an unknown config field.
    """
    names = data.class_names
    classes: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    stuff = [index for index, is_thing in enumerate(data.checked.is_thing) if not is_thing]
    fields = {**arguments.config_overrides, "stuff_class_ids": stuff}
    if arguments.model_name_or_path is None:  # a trained one's heads know their own
        fields = {"prior_box_size": usual_box_size(data), **fields}
    check_fields(fields, HfDetrConfig())
    if arguments.model_name_or_path is not None:
        origin: dict[str, Any] = {
            "trust_remote_code": arguments.trust_remote_code,
            "revision": arguments.model_revision,
        }
        config = AutoConfig.from_pretrained(arguments.model_name_or_path, **origin, **fields)
        config.id2label, config.label2id = classes["id2label"], classes["label2id"]
        model = model_class.from_pretrained(
            arguments.model_name_or_path, **origin, config=config, ignore_mismatched_sizes=True
        )
    elif arguments.backbone_name_or_path is not None:
        made = getattr(model_class, "from_backbone")  # noqa: B009 - of our own classes alone
        model = made(
            arguments.backbone_name_or_path,
            trust_remote_code=arguments.trust_remote_code,
            image_size=canvas,
            **fields,
            **classes,
        )
    else:
        own = {"image_size": list(canvas), **arguments.backbone_overrides}
        check_fields(own, HfViTConfig(), argument="backbone_overrides")
        model = model_class(HfDetrConfig(backbone_config=HfViTConfig(**own), **fields, **classes))
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def usual_box_size(data: AnnotatedData) -> float:
    """The median of the training boxes' sides, in parts of their images: where tokens start, so that most of what they
    have to learn first is where and what the objects are."""
    train = data.splits["train"]
    sides = [
        math.sqrt(w / width * h / height)
        for objects, height, width in zip(train["objects"], train["height"], train["width"])
        for _, _, w, h in objects["bbox"]
    ]
    return round(min(max(statistics.median(sides), 0.01), 1.0), 4) if sides else HfDetrConfig().prior_box_size


def build_processor(arguments: DetectorArguments, canvas: tuple[int, int], config: Any) -> HfDetrImageProcessor:
    """The processor saved beside the weights: the checkpoint's own form where there is one."""
    classes: dict[str, Any] = {"num_labels": config.num_labels, "label_ids_to_fuse": list(config.stuff_class_ids)}
    if arguments.model_name_or_path is not None:
        processor = _processor_of(arguments)
        for name, value in classes.items():
            setattr(processor, name, value)
        return processor
    return HfDetrImageProcessor(
        size={"height": canvas[0], "width": canvas[1]},
        resample=Resampling.BILINEAR,
        image_mean=arguments.image_mean,
        image_std=arguments.image_std,
        crop_mode="border" if arguments.letterbox else "squash",
        **classes,
    )


def _processor_of(arguments: DetectorArguments) -> HfDetrImageProcessor:
    origin = {"trust_remote_code": arguments.trust_remote_code, "revision": arguments.model_revision}
    return AutoImageProcessor.from_pretrained(arguments.model_name_or_path, **origin)
