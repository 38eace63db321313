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


@torch.inference_mode()
def read(reader: ImageToTextPipeline, images: Sequence[Image.Image], count: int = 1) -> list[list[dict[str, Any]]]:
    """The best `count` texts of each image, found by as many beams, each `{"generated_text": ..., "score": ...}`: the
    geometric mean of the probabilities of its tokens, its end among them, in (0, 1]."""
    beams = max(reader.model.generation_config.num_beams or 1, count)
    pixel_values = torch.cat([reader.preprocess(image)["pixel_values"] for image in images])  # (B, C, height, width)
    written = reader.forward({"pixel_values": pixel_values}, num_beams=beams, num_return_sequences=count)["output_ids"]
    scores = _scores_of(reader.model, pixel_values, written)
    return [
        [{**text, "score": score} for text, score in zip(reader.postprocess({"output_ids": ids[None]}), each)]
        for ids, each in zip(written, scores.tolist())
    ]


def _scores_of(model: Any, pixel_values: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Images (B, C, height, width) and the tokens (B, texts, T) of their texts, behind what the decoder starts with ->
    the geometric means (B, texts) of the tokens' probabilities, that of each text's end among them."""
    ends = model.generation_config.eos_token_id
    labels = written.flatten(0, 1)[:, 1:]
    is_end = torch.isin(labels, torch.tensor([] if ends is None else ends, dtype=torch.long))
    counts = is_end.cumsum(1) - is_end.long() == 0  # what follows an end is padding
    repeated = pixel_values.to(model.dtype).repeat_interleave(written.shape[1], 0)
    logits = model(pixel_values=repeated, decoder_input_ids=written.flatten(0, 1)[:, :-1]).logits.float()
    chances = logits.log_softmax(-1).gather(2, labels[..., None])[..., 0]
    return ((chances * counts).sum(1) / counts.sum(1)).exp().unflatten(0, written.shape[:2])
