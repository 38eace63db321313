"""What each patch says for and against each class, where the logits are a sum over patches.

Shapes: B batch, T tokens, N patches, D hidden size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.explain.groups import of_all_tokens
from hf_vit.explain.pooling import pooling_weights_of

_OF_CLASS_TOKEN = ("cls", "cls_tanh")


@dataclass(frozen=True)
class Evidence:
    """The parts of the logits: `patches.sum((1, 2)) + tokens + bias == logits`.

    Attributes:
        patches: shape (batch, rows, columns, classes).
        tokens: of the class and the distillation token, shape (batch, classes).
        bias: of the head, and of the norm where that follows the pooling, shape (classes,).
    """

    patches: torch.Tensor
    tokens: torch.Tensor
    bias: torch.Tensor

    @property
    def logits(self) -> torch.Tensor:
        """Their sum, shape (batch, classes)."""
        return self.patches.sum((1, 2)) + self.tokens + self.bias


def has_evidence(model: PreTrainedModel) -> bool:
    """Whether a classifier's logits are linear in its pooled patches: some pooling reads patches, none reads them by
    attention, whose MLP mixes them."""
    poolings = set(getattr(model.config, "poolings", ()))
    return bool(poolings - set(_OF_CLASS_TOKEN)) and "attention" not in poolings


@torch.no_grad()
def patch_evidence(model: PreTrainedModel, pixel_values: torch.Tensor) -> Evidence:
    """Split the logits of a linear classifier into what each patch's final vector adds to them.

    Exact, not an approximation: the weights of the patches (for weighted pooling those that this image gets, for max
    pooling which patch is the largest in a channel) and the scale of a norm that follows the pooling are held at their
    values. A patch's final vector has seen the other patches through attention.

    Args:
        model: an `HfViTForImageClassification`.
        pixel_values: normalised images, shape (batch, channels, height, width).

    Raises:
        ValueError: if the logits are not linear in pooled patches, see [`has_evidence`], or there are no classes.
    """
    if not has_evidence(model):
        raise ValueError(
            "pooling must read patches by mean, max, cls_mean or weighted alone for exact evidence, got "
            f"{getattr(model.config, 'pooling', None)!r}: use attention_relevance"
        )
    body: Any = model.base_model
    config: Any = model.config
    classifier: Any = model.classifier
    distillation_head: Any = model.distillation_head
    if not config.num_labels:
        raise ValueError("model must have classes, got num_labels 0")
    grid_size = body.embeddings.patch_embedding.grid_size(pixel_values)
    hidden_states = of_all_tokens(body, body(pixel_values, return_dict=True))
    share = 1.0 if distillation_head is None else 0.5  # the logits are the mean of the two heads'
    bias = share * _bias_of(classifier)
    by_token = hidden_states.new_zeros(*hidden_states.shape[:2], config.num_labels, dtype=torch.float32)  # (B, T, C)
    heads = classifier.weight.float().chunk(len(config.poolings), dim=1)  # (C, D) each
    for (name, module), weight in zip(body.pooler.poolings.items(), heads):
        pooled = module(hidden_states)  # (B, D)
        if name in _OF_CLASS_TOKEN:
            by_token[:, config.class_token_index] += share * (body.norm_pooled(pooled).float() @ weight.T)
            continue
        parts = hidden_states.float() * _token_weights(name, module, body, hidden_states)  # (B, T, D)
        if config.norm_after_pooling:
            parts, shift = _held_norm(body.norm, parts, pooled)
            bias = bias + share * (weight @ shift)
        by_token += share * (parts @ weight.T)
    if distillation_head is not None:
        token = body.norm_pooled(hidden_states[:, config.distillation_token_index]).float()
        by_token[:, config.distillation_token_index] += share * (token @ distillation_head.weight.float().T)
        bias = bias + share * _bias_of(distillation_head)
    prefix, patches = by_token[:, : config.num_prefix_tokens], by_token[:, config.num_prefix_tokens :]
    return Evidence(patches.unflatten(1, grid_size), prefix.sum(1), bias)


def _bias_of(head: Any) -> torch.Tensor:
    return head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias.float()


def _token_weights(name: str, module: Any, body: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Weight of each token in the channels of one pooling: (batch, tokens, 1), of max pooling (batch, tokens, D)."""
    if name != "max":
        return pooling_weights_of(name, module, body.config, hidden_states)[..., None]
    num_prefix = body.config.num_prefix_tokens
    patches = hidden_states[:, num_prefix:]
    largest = nn.functional.one_hot(patches.argmax(1), patches.shape[1]).transpose(1, 2)  # (B, N, D)
    return nn.functional.pad(largest.float(), (0, 0, num_prefix, 0))


def _held_norm(norm: Any, parts: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts (batch, tokens, hidden_size) of a pooled vector after the norm of that vector, whose scale is held,
    and the norm's own shift (hidden_size,)."""
    pooled = pooled.float()
    if isinstance(norm, nn.LayerNorm):
        deviation = (pooled.var(-1, unbiased=False) + norm.eps).sqrt()
        parts = parts - parts.mean(-1, keepdim=True)
        shift = norm.bias
    else:
        eps = norm.eps if norm.eps is not None else torch.finfo(pooled.dtype).eps
        deviation = (pooled.square().mean(-1) + eps).sqrt()
        shift = None
    parts = parts / deviation[:, None, None] * norm.weight.float()
    return parts, torch.zeros_like(norm.weight, dtype=torch.float32) if shift is None else shift.float()


__all__ = ["Evidence", "has_evidence", "patch_evidence"]
