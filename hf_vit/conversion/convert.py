"""A checkpoint of timm or transformers as a folder of ours: weights, code, configuration, processor or tokenizer."""

import os
import tempfile
from pathlib import Path

import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, ViTImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import cached_file

from hf_vit.conversion.text import from_marian, from_t5
from hf_vit.conversion.vit import from_timm, from_transformers

_CONVERSIONS = {
    "ViTForImageClassification": (from_transformers, AutoImageProcessor),
    "DeiTForImageClassification": (from_transformers, AutoImageProcessor),
    "DeiTForImageClassificationWithTeacher": (from_transformers, AutoImageProcessor),
    "MarianMTModel": (from_marian, AutoTokenizer),
    "T5ForConditionalGeneration": (from_t5, AutoTokenizer),
}
_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


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
    if processor_class is AutoImageProcessor:
        processor.do_convert_rgb = True
    return from_peer(getattr(transformers, name).from_pretrained(source, revision=revision)), processor


def _load_timm(source: str, revision: str | None) -> tuple[nn.Module, ViTImageProcessor]:
    try:
        import timm
    except ImportError as error:
        raise ValueError("a timm checkpoint as source needs timm: pip install timm") from error
    location = (
        f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}" + (f"@{revision}" if revision else "")
    )
    peer = timm.create_model(location, pretrained=True)
    form = timm.data.resolve_model_data_config(peer)
    height, width = form["input_size"][1:]
    processor = ViTImageProcessor(
        size={"height": height, "width": width},
        resample=_RESAMPLING[form["interpolation"]],
        image_mean=list(form["mean"]),
        image_std=list(form["std"]),
        do_convert_rgb=True,
    )
    model = from_timm(peer)
    labels = (peer.pretrained_cfg or {}).get("label_names")
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model, processor


__all__ = ["convert"]
