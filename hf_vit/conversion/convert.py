"""A checkpoint of timm or transformers as a folder of ours: weights, code, configuration, processor or tokenizer."""

import os
import tempfile
from pathlib import Path

import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import cached_file

from hf_vit.conversion.text import from_marian, from_t5
from hf_vit.conversion.vit import from_timm, from_transformers
from hf_vit.models.image_processing_hf_vit import CROP_MODES, HfViTImageProcessor

_CONVERSIONS = {
    "ViTForImageClassification": (from_transformers, AutoImageProcessor),
    "DeiTForImageClassification": (from_transformers, AutoImageProcessor),
    "DeiTForImageClassificationWithTeacher": (from_transformers, AutoImageProcessor),
    "MarianMTModel": (from_marian, AutoTokenizer),
    "T5ForConditionalGeneration": (from_t5, AutoTokenizer),
}
# timm draws "random" anew for each image; where it evaluates what was trained so, it takes the first of the two.
_RANDOM_INTERPOLATION = "bilinear"


def convert(source: str | os.PathLike, folder: str | os.PathLike, revision: str | None = None) -> Path:
    """Write a model of ours with the weights of another one.

    Args:
        source: id on the Hub, or folder, of a checkpoint of timm's `VisionTransformer` or of transformers' ViT, DeiT,
            Marian or T5.
        folder: where to; it appears once it is complete.
        revision: of the id on the Hub: a branch, a tag or a commit.

    Returns:
        `folder`.

    Raises:
        ValueError: if `folder` is there already, or the source is not there, or is of another kind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must be a new or an empty one, got {str(folder)!r}")
    try:
        model, processor = _load(str(source), revision)
    except OSError as error:
        raise ValueError(
            f"source must be a folder or an id on the Hub with all its files, got {source!r}: {error}"
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as directory:
        stage = Path(directory, folder.name)
        model.save_pretrained(stage)
        processor.save_pretrained(stage)
        os.replace(stage, folder)
    return folder


def _load(source: str, revision: str | None) -> tuple[nn.Module, object]:
    facts, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    if "architecture" in facts:
        return _load_timm(source, revision)
    name = next(iter(facts.get("architectures") or ()), None)
    if name not in _CONVERSIONS:
        raise ValueError(f"source must be of timm's VisionTransformer, {', '.join(_CONVERSIONS)}, got {name!r}")
    from_peer, processor_class = _CONVERSIONS[name]
    if processor_class is AutoTokenizer:
        try:
            cached_file(source, "tokenizer_config.json", revision=revision)
        except OSError as error:  # without it there would be an empty tokenizer
            raise ValueError(f"source must have a tokenizer beside the model, got {source!r}: {error}") from error
    processor = processor_class.from_pretrained(source, revision=revision)
    model = from_peer(getattr(transformers, name).from_pretrained(source, revision=revision))
    if processor_class is AutoImageProcessor and model.config.num_channels == 3:
        processor.do_convert_rgb = True
    return model, processor


def _load_timm(source: str, revision: str | None) -> tuple[nn.Module, BaseImageProcessor]:
    try:
        import timm
    except ImportError as error:
        raise ValueError("a timm checkpoint as source needs timm: pip install timm") from error
    location = (
        f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}" + (f"@{revision}" if revision else "")
    )
    peer = timm.create_model(location, pretrained=True)
    model = from_timm(peer)
    processor = timm_processor(timm.data.resolve_model_data_config(peer, args=_input_of(peer)))
    labels = (peer.pretrained_cfg or {}).get("label_names")
    if labels:
        if len(labels) != peer.num_classes:
            raise ValueError(
                f"label_names of the checkpoint must name its {peer.num_classes} classes, got {len(labels)} names"
            )
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model, processor


def _input_of(peer: nn.Module) -> dict:
    """Facts about a timm model's input that its pretrained configuration may not know."""
    num_channels = peer.patch_embed.proj.in_channels
    if peer.dynamic_img_size:
        return {"in_chans": num_channels}
    return {"input_size": (num_channels, *peer.patch_embed.img_size)}


def timm_processor(form: dict) -> BaseImageProcessor:
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
    fields = {
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


__all__ = ["convert", "timm_processor"]
