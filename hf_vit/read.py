"""Texts of images: captions and transcriptions, with their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit.fingerprint import check_fingerprint
from hf_vit.models.pipeline_image_to_text import ImageToTextPipeline
from hf_vit.unasked import unasked


@unasked()
def load_reader(model: str, revision: str | None = None) -> ImageToTextPipeline:
    """The pipeline of a model of the Hub or of a folder. Runs no code of it: the classes are this package's.

    Raises:
        ValueError: the folder is not as its record says, or needs code of its own.
    """
    check_fingerprint(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    return ImageToTextPipeline(
        model=AutoModelForImageTextToText.from_pretrained(model, **options).eval(),
        tokenizer=AutoTokenizer.from_pretrained(model, **options),
        image_processor=AutoImageProcessor.from_pretrained(model, **options),
    )


def read(reader: ImageToTextPipeline, images: Sequence[Image.Image], count: int = 1) -> list[list[dict[str, Any]]]:
    """The best `count` texts of each image, found by as many beams, each `{"generated_text": ..., "score": ...}`: the
    geometric mean of the probabilities of its tokens, its end among them, in (0, 1]."""
    beams = max(reader.model.generation_config.num_beams or 1, count)
    found: Any = reader(list(images), num_beams=beams, num_return_sequences=count)
    return [
        [{**each, "score": _score_of(reader, image, each["generated_text"])} for each in texts]
        for image, texts in zip(images, found)
    ]


@torch.inference_mode()
def _score_of(reader: ImageToTextPipeline, image: Image.Image, text: str) -> float:
    eos = reader.model.generation_config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    row = reader.tokenizer(text)["input_ids"]
    labels = torch.tensor([row if eos is None or row[-1:] == [eos] else [*row, eos]])  # (1, T)
    logits = reader.model(reader.preprocess(image)["pixel_values"], labels=labels).logits[0].float()
    return float(logits.log_softmax(-1).gather(1, labels[0][:, None]).mean().exp())
