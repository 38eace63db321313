"""What each token weighs in the pooled vector.

Shapes: B batch, T tokens, N patches, D hidden size, H heads, K head size.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def pooling_weights(model: PreTrainedModel, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The weight of each token in the pooled vector.

    Class token and means have the same weights for every image; weighted and attention pooling (mean over its heads)
    have those that they find for it. Max pooling has no weights: in their place is each patch's share of the channels
    in which it is the largest. Several poolings count alike. A model that does not pool is taken to read its class
    token or, without one, the mean of its patches.

    Args:
        model: an `HfViTModel` or a model with one inside.
        last_hidden_state: the output of that `HfViTModel`, shape (batch, tokens, hidden_size).

    Returns:
        fp32 tensor of shape (batch, tokens). Rows sum to one.
    """
    body: Any = model.base_model
    if body.pooler is None:
        poolings = [("cls" if body.config.use_class_token else "mean", None)]
    else:
        poolings = list(zip(body.config.poolings, body.pooler.poolings.values()))
    weights = last_hidden_state.new_zeros(last_hidden_state.shape[:2], dtype=torch.float32)  # (B, T)
    for name, module in poolings:
        weights += pooling_weights_of(name, module, body.config, last_hidden_state)
    return weights / len(poolings)


def pooling_weights_of(name: str, module: Any, config: Any, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The weight of each token in the vector of one pooling: (batch, tokens, hidden_size) -> fp32 (batch, tokens)."""
    num_prefix = config.num_prefix_tokens
    class_share, patch_weights = _WEIGHTS[name](module, last_hidden_state[:, num_prefix:])
    weights = last_hidden_state.new_zeros(last_hidden_state.shape[:2], dtype=torch.float32)  # (B, T)
    weights[:, num_prefix:] = (1 - class_share) * patch_weights
    if class_share:
        weights[:, config.class_token_index] = class_share
    return weights


def _even_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    return 0.0, patches.new_full(patches.shape[:2], 1 / patches.shape[1], dtype=torch.float32)


def _class_token_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    return 1.0, _even_weights(module, patches)[1]


def _class_token_mean_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    share = module.weight if module.weight_logit is None else module.weight_logit.sigmoid().item()
    return share, _even_weights(module, patches)[1]


def _max_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    largest = patches.argmax(1)  # (B, D)
    return 0.0, nn.functional.one_hot(largest, patches.shape[1]).float().mean(1)


def _learnt_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    return 0.0, module.score(patches).float().softmax(1).squeeze(2)


def _attention_weights(module: Any, patches: torch.Tensor) -> tuple[float, torch.Tensor]:
    heads = (module.num_attention_heads, -1)
    query = module.q_proj(module.query).unflatten(-1, heads)  # (1, 1, H, d)
    key = module.kv_proj(patches).chunk(2, dim=-1)[0].unflatten(-1, heads)  # (B, N, H, K)
    scores = (query * key).sum(-1) / math.sqrt(key.shape[-1])  # (B, N, H)
    return 0.0, scores.float().softmax(1).mean(2)


# By the name of a pooling: (module, patches (B, N, D)) -> share of the class token, and the weights (B, N)
# of the patches in what is left of it.
_WEIGHTS = {
    "cls": _class_token_weights,
    "cls_tanh": _class_token_weights,
    "mean": _even_weights,
    "max": _max_weights,
    "cls_mean": _class_token_mean_weights,
    "weighted": _learnt_weights,
    "attention": _attention_weights,
}
