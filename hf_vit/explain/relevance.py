"""Attention weighted by its gradients: what is relevant to a class, for classifiers of any pooling.

Shapes: B batch, H heads, T tokens.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_vit.explain.attention import among_all_tokens, attention_to_grid
from hf_vit.explain.pooling import pooling_weights


def attention_relevance(
    model: PreTrainedModel, pixel_values: torch.Tensor, target: int | torch.Tensor
) -> torch.Tensor:
    """Relevance of each patch to a class by gradient-weighted attention (2103.15679): layer by layer R = R + A R, from
    the identity on, where A is the mean over heads of the positive part of attention times the gradient of the logit.

    The row of the class token is returned, or where patches are pooled the sum of theirs, each with its weight in the
    pooled vector; what a patch says of itself through the residual connections alone is left out.

    Args:
        model: an `HfViTForImageClassification`.
        pixel_values: normalised images, shape (batch, channels, height, width).
        target: the class, or the class of each image, shape (batch,).

    Returns:
        fp32 tensor of shape (batch, rows, columns), at least 0; what speaks against the class is not seen.

    Raises:
        ValueError: if tokens are merged or pruned.
    """
    body: Any = model.base_model
    config: Any = model.config
    grid_size = body.embeddings.patch_embedding.grid_size(pixel_values)
    with torch.no_grad():
        outputs = body(pixel_values, return_dict=True)
    if getattr(outputs, "token_groups", None) is not None:
        raise ValueError(
            "the model must keep all its tokens: set token_merging_r to 0 and token_pruning_keep_rate to 1"
        )
    query = pooling_weights(body, outputs.last_hidden_state)  # (B, T)
    if getattr(model, "distillation_head", None) is not None:  # the logits are the mean of the two heads'
        query = query / 2
        query[:, config.distillation_token_index] += 0.5
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()  # the weights may need no gradients
        outputs = model(pixel_values, output_attentions=True, return_dict=True)
        targets = torch.as_tensor(target, device=pixel_values.device).expand(len(pixel_values))
        logits = outputs.logits.gather(1, targets[:, None])
        gradients = torch.autograd.grad(logits.sum(), outputs.attentions)
    num_tokens = query.shape[1]
    identity = torch.eye(num_tokens, device=query.device)
    relevance = identity.expand(len(query), -1, -1)  # (B, T, T)
    for attention, gradient in zip(outputs.attentions, gradients):
        weighted = (attention.detach() * gradient).float().clamp(min=0).mean(1, keepdim=True)
        nothing = torch.zeros(num_tokens, num_tokens, device=query.device)
        relevance = relevance + among_all_tokens(weighted, nothing)[:, 0] @ relevance
    return attention_to_grid(relevance - identity, query, grid_size)


__all__ = ["attention_relevance"]
