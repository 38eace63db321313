"""Where a model that writes texts of images looked for each token that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from hf_vit.explain.explanation import as_seen


@dataclass(frozen=True)
class Reading:
    """What was read: the `image` as the model sees it, shape (height, width, 3), in [0, 1], the `text`, and for each
    of its `tokens`, the end left out, how much of the decoder's attention each patch got, shape (tokens, rows,
    columns), a mean over the last layer's heads."""

    image: torch.Tensor
    text: str
    tokens: list[str]
    weights: torch.Tensor


@torch.no_grad()
def read_image(reader: Any, image: Image.Image) -> Reading:
    """Write the text of an image, and say where the decoder looked.

    Args:
        reader: the pipeline `image-to-text` of an `HfViTForImageToText`.

    Raises:
        ValueError: the model is of another kind.
    """
    model, tokenizer = reader.model, reader.tokenizer
    config: Any = model.config
    if not hasattr(config, "vision_config") or not hasattr(model, "encoder"):
        kind = ", ".join(config.architectures or [type(model).__name__])
        raise ValueError(f"model must be an HfViTForImageToText, got {kind}")
    pixel_values = reader.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    written = model.generate(pixel_values=pixel_values, **limits_of(reader))[0]
    special = set(tokenizer.all_special_ids)
    ids = [token for token in written.tolist() if token not in special]
    text = tokenizer.decode(ids).strip()
    grid = model.encoder.embeddings.patch_embedding.grid_size(pixel_values)
    if not ids:
        return Reading(as_seen(reader.image_processor, pixel_values), text, [], torch.zeros(0, *grid))
    outputs = model(pixel_values, labels=torch.tensor([ids]), output_attentions=True)
    weights = outputs.cross_attentions[-1][0].float().mean(0)  # (tokens, T)
    patches = weights[:, weights.shape[1] - grid[0] * grid[1] :].unflatten(1, grid)
    tokens = [tokenizer.decode([token]).strip() or "␣" for token in ids]
    return Reading(as_seen(reader.image_processor, pixel_values), text, tokens, patches)


def limits_of(reader: Any) -> dict[str, int]:
    """How long a text may become, as the pipeline has it: nothing where the model says so itself."""
    limits = reader.model.generation_config
    return {} if limits.max_new_tokens or limits.max_length else {"max_new_tokens": reader._max_new_tokens()}


__all__ = ["Reading", "read_image"]
