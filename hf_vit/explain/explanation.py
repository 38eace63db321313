"""Everything that explains a classifier's answer to one image."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_vit.explain.attention import attention_distance, attention_maps
from hf_vit.explain.curves import Curves, deletion_and_insertion, scores_of
from hf_vit.explain.evidence import has_evidence, patch_evidence
from hf_vit.explain.features import feature_components
from hf_vit.explain.relevance import attention_relevance


@dataclass(frozen=True)
class ClassExplanation:
    """Why an image scores as it does for a class.

    Attributes:
        label: the name of the class.
        score: its probability; of a regression its value.
        logit: before softmax or sigmoid.
        heat_map: shape (rows, columns). Exact evidence for (above 0) and against, in units of the logit: with `tokens`
            and `bias` its sum is the logit. Without these two, gradient-weighted attention.
        tokens, bias: what class token and distillation token, and the head's bias, add to the logit.
        curves: deletion and insertion curves in the map's order.
        chance: the same in an order drawn by chance, for comparison.
    """

    label: str
    score: float
    logit: float
    heat_map: torch.Tensor
    tokens: float | None
    bias: float | None
    curves: Curves
    chance: Curves

    @property
    def is_exact(self) -> bool:
        """Whether the map is evidence that sums to the logit."""
        return self.bias is not None


@dataclass(frozen=True)
class Explanation:
    """What a classifier makes of an image.

    Attributes:
        image: as the model sees it, shape (height, width, 3), in [0, 1].
        classes: the predicted class, then those that were asked for.
        rollout: attention through all layers, shape (rows, columns).
        heads: attention of the last layer's heads, shape (heads, rows, columns).
        distance: mean distance of attention in pixels, shape (layers, heads).
        features: principal components of the patches as colours, shape (rows, columns, 3), in [0, 1].
    """

    image: torch.Tensor
    classes: list[ClassExplanation]
    rollout: torch.Tensor
    heads: torch.Tensor
    distance: torch.Tensor
    features: torch.Tensor


def explain_image(
    model: PreTrainedModel, processor: Any, image: Image.Image, class_names: Sequence[str] = (), num_steps: int = 16
) -> Explanation:
    """Explain a classifier's answer to an image: the predicted class, and others.

    Args:
        model: an `HfViTForImageClassification`; it is put in eval mode.
        processor: its image processor.
        class_names: further classes, by name or index.
        num_steps: of the deletion and insertion curves.

    Raises:
        ValueError: the model is of another kind, or has no such class; the message gives the nearest names.
    """
    config: Any = model.config
    if not is_explained(model):
        kind = ", ".join(config.architectures or [type(model).__name__])
        raise ValueError(f"model must be a Vision Transformer of this package that classifies images, got {kind}")
    asked = [class_index(model, name) for name in class_names]
    model.eval()
    pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]  # (1, C, H, W)
    with torch.no_grad():
        logits = model(pixel_values).logits.float()  # (1, classes)
    indices = dict.fromkeys([int(logits.argmax()), *asked])
    attentions, rollout = attention_maps(model, pixel_values)
    return Explanation(
        image=as_seen(processor, pixel_values),
        classes=[_explain_class(model, pixel_values, logits, index, num_steps) for index in indices],
        rollout=rollout[0],
        heads=attentions[0, -1],
        distance=attention_distance(model, pixel_values)[0],
        features=feature_components(model, pixel_values)[0],
    )


def is_explained(model: Any) -> bool:
    """Whether [`explain_image`] takes a model: a Vision Transformer of this package that classifies."""
    return hasattr(model.config, "poolings") and hasattr(model, "classifier")


def class_index(model: PreTrainedModel, name: str) -> int:
    """The index of a class, by its name or by the index itself.

    Raises:
        ValueError: there is no such class; the message gives the nearest names.
    """
    labels = _labels_of(model)
    by_name = {label: index for index, label in labels.items()}
    if name in by_name:
        return by_name[name]
    if name.isdecimal() and int(name) in labels:
        return int(name)
    near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else f"there are {len(labels)}, {', '.join(list(by_name)[:5])}, ..."
    raise ValueError(f"class {name!r} does not exist, {hint}")


def _labels_of(model: PreTrainedModel) -> dict[int, str]:
    config: Any = model.config
    return config.id2label


def class_heat_map(
    model: PreTrainedModel, pixel_values: torch.Tensor, index: int
) -> tuple[torch.Tensor, float | None, float | None]:
    """The map of a class over one image (1, C, height, width), as of [`ClassExplanation`]: shape (1, rows, columns),
    and what tokens and bias add to it where it is exact."""
    if not has_evidence(model):
        return attention_relevance(model, pixel_values, index), None, None
    evidence = patch_evidence(model, pixel_values)
    return evidence.patches[..., index], float(evidence.tokens[0, index]), float(evidence.bias[index])


def _explain_class(
    model: PreTrainedModel, pixel_values: torch.Tensor, logits: torch.Tensor, index: int, num_steps: int
) -> ClassExplanation:
    heat_map, tokens, bias = class_heat_map(model, pixel_values, index)
    by_chance = torch.rand(heat_map.shape, generator=torch.Generator().manual_seed(0))
    return ClassExplanation(
        label=_labels_of(model)[index],
        score=float(scores_of(model, logits)[0, index]),
        logit=float(logits[0, index]),
        heat_map=heat_map[0],
        tokens=tokens,
        bias=bias,
        curves=deletion_and_insertion(model, pixel_values, heat_map, index, num_steps),
        chance=deletion_and_insertion(model, pixel_values, by_chance, index, num_steps),
    )


def as_seen(processor: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The pixels that a model is given as colours, (1, C, height, width) -> (height, width, 3) in [0, 1]."""
    pixels = pixel_values[0].float()
    if getattr(processor, "do_normalize", False):
        mean, std = (
            torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )
        pixels = pixels * std + mean
    return pixels.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)


__all__ = [
    "ClassExplanation",
    "Explanation",
    "as_seen",
    "class_heat_map",
    "class_index",
    "explain_image",
    "is_explained",
]
