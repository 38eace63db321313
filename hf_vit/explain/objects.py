"""Where a detector looked for each object that it found.

Shapes: B batch, H heads, Q queries, N tokens of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_vit.explain.explanation import as_seen
from hf_vit.models.box_ops import center_to_corners


@dataclass(frozen=True)
class ObjectExplanation:
    """An object that a detector found, and where it looked for it.

    Attributes:
        label: the name of its class.
        score: its probability.
        box: corners (left, top, right, bottom) in parts of the image as the model sees it, shape (4,).
        heat_map: gradient-weighted attention to the tokens of the image, at least 0, shape (rows, columns).
    """

    label: str
    score: float
    box: torch.Tensor
    heat_map: torch.Tensor

    @property
    def share_inside(self) -> float:
        """How much of the map lies on tokens whose centre is in the box, from 0 to 1."""
        rows, columns = self.heat_map.shape
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
        left, top, right, bottom = self.box
        inside = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
        return float(self.heat_map[inside].sum() / self.heat_map.sum().clamp(min=1e-12))


@dataclass(frozen=True)
class ObjectsExplanation:
    """What a detector found in an image: the `image` as the model sees it, shape (height, width, 3), in [0, 1], and
    the `objects`, the highest scores first."""

    image: torch.Tensor
    objects: list[ObjectExplanation]


def explain_objects(
    model: PreTrainedModel, processor: Any, image: Image.Image, threshold: float = 0.5, top_k: int = 6
) -> ObjectsExplanation:
    """Explain what a detector or a segmenter found in an image.

    Args:
        model: an `HfDetrForObjectDetection` or `HfDetrForSegmentation`; it is put in eval mode.
        processor: its image processor.
        threshold: the least score of an object, between 0 and 1.
        top_k: objects at most, each of which takes a backward pass.

    Raises:
        ValueError: the model is of another kind, or a number is out of range.
    """
    config: Any = model.config
    if not hasattr(config, "class_loss") or not hasattr(model, "class_labels_classifier"):
        kind = ", ".join(config.architectures or [type(model).__name__])
        raise ValueError(f"model must be a detector of this package (HfDetrForObjectDetection), got {kind}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]  # (1, C, height, width)
    with torch.no_grad():
        outputs = model.eval()(pixel_values)
    has_no_object = config.class_loss == "softmax"
    logits = outputs.logits[0].float()  # (Q, class logits)
    chances = logits.softmax(-1)[:, :-1] if has_no_object else logits.sigmoid()
    scores, labels = chances.max(-1)
    best = [int(query) for query in scores.argsort(descending=True)[:top_k] if scores[query] >= threshold]
    boxes = center_to_corners(outputs.pred_boxes[0].float()).clamp(0, 1)
    maps = query_relevance(model, pixel_values, [(query, int(labels[query])) for query in best]) if best else []
    found = [
        ObjectExplanation(config.id2label[int(labels[query])], float(scores[query]), boxes[query], heat_map)
        for query, heat_map in zip(best, maps)
    ]
    return ObjectsExplanation(as_seen(processor, pixel_values), found)


def query_relevance(
    model: PreTrainedModel, pixel_values: torch.Tensor, targets: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """Relevance of each token of the image to a class of a query, by gradient-weighted attention through the layers of
    the decoder (2103.15679, equations 5 to 11): the mean over heads of the positive part of attention times the
    gradient of the logit is added up along the paths from the tokens to the query, through other queries too. What the
    backbone does before is not followed: a token stands for the part of the image that it lies on.

    Args:
        model: an `HfDetrForObjectDetection`.
        pixel_values: one normalised image, shape (1, channels, height, width).
        targets: queries and classes.

    Returns:
        A tensor of shape (rows, columns) for each target, fp32, at least 0.
    """
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()  # the weights may need no gradients
        outputs = model(pixel_values, output_attentions=True)
        attentions = (*outputs.decoder_attentions, *outputs.cross_attentions)
        found = []
        for query, index in targets:
            gradients = torch.autograd.grad(
                outputs.logits[0, query, index], attentions, retain_graph=True, allow_unused=True
            )
            weighted = [
                torch.zeros_like(attention[0, 0]).float()
                if gradient is None
                else (attention * gradient).detach()[0].float().clamp(min=0).mean(0)
                for attention, gradient in zip(attentions, gradients)
            ]
            num_layers = len(outputs.cross_attentions)
            relevance = _through_layers(weighted[:num_layers], weighted[num_layers:])[query]  # (N,)
            found.append(relevance.unflatten(0, tuple(outputs.encoder_last_hidden_state.shape[2:])))
    return found


def _through_layers(among_queries: list[torch.Tensor], to_image: list[torch.Tensor]) -> torch.Tensor:
    """Relevance of tokens to queries (Q, N), of the weighted attention of each layer: (Q, Q) and (Q, N)."""
    identity = torch.eye(len(among_queries[0]))
    of_queries, of_tokens = identity, torch.zeros_like(to_image[0])
    for own, cross in zip(among_queries, to_image):
        of_tokens = of_tokens + own @ of_tokens
        of_queries = of_queries + own @ of_queries
        others = of_queries - identity
        mixed = others / others.sum(-1, keepdim=True).clamp(min=1e-12) + identity
        of_tokens = of_tokens + mixed.T @ cross
    return of_tokens


__all__ = ["ObjectExplanation", "ObjectsExplanation", "explain_objects", "query_relevance"]
