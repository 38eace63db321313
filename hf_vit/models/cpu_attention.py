"""Attention for bf16 on a CPU, where batched matmuls beat the fused kernel.

Shapes: B batch, of a chunk, H heads, Q queries, S keys.
"""

from typing import Any

import torch
from torch import nn

from .cpu_operators import softmax_backward
from .cpu_paths import fuses_forward_attention

# Attention weights that one step holds at a time: 1M bf16 numbers stay in a core's cache.
_CHUNK_WEIGHTS = 1 << 20


class _ChunkedAttention(torch.autograd.Function):
    """Attention as two batched matmuls over a few samples at a time, its weights computed again in the
    backward pass: never more than a chunk of them in memory, and in bf16 on a CPU several times faster than the fused
    kernel for short sequences. Where the fused kernel is the faster one forward, it is taken for that."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        key_bias: torch.Tensor | None = None,
    ) -> Any:
        ctx.save_for_backward(query, key, value, key_bias)
        ctx.scaling = scaling
        return _attend(query, key, value, scaling, key_bias)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        query, key, value, key_bias = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for chunk in _chunks(query, key):
            weights = _weights(query[chunk], key[chunk], ctx.scaling, _of(key_bias, chunk))  # (B, H, Q, S)
            grad_value[chunk] = torch.matmul(weights.transpose(2, 3), grad_output[chunk])
            grad_weights = torch.matmul(grad_output[chunk], value[chunk].transpose(2, 3))
            grad_scores = softmax_backward(grad_weights, weights).mul_(ctx.scaling)
            grad_query[chunk] = torch.matmul(grad_scores, key[chunk])
            grad_key[chunk] = torch.matmul(grad_scores.transpose(2, 3), query[chunk])
        return grad_query, grad_key, grad_value, None, None


def chunked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    key_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention without a mask by batched matmuls, shape (batch, heads, queries, head size of the values).

    Args:
        query: shape (batch, heads, queries, head size); `key` and `value` likewise with the number of keys,
            values with a size of their own.
        scaling: factor of the scores.
        key_bias: added to all scores of a key, shape (batch, keys), without a gradient.
    """
    attend = _ChunkedAttention.apply if torch.is_grad_enabled() else _attend
    return attend(query, key, value, scaling, key_bias)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, key_bias: torch.Tensor | None
) -> torch.Tensor:
    if fuses_forward_attention():
        mask = None if key_bias is None else key_bias[:, None, None, :].to(query.dtype)
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    for chunk in _chunks(query, key):
        weights = _weights(query[chunk], key[chunk], scaling, _of(key_bias, chunk))
        torch.matmul(weights, value[chunk], out=output[chunk])
    return output


def _weights(
    query: torch.Tensor, key: torch.Tensor, scaling: float, key_bias: torch.Tensor | None = None
) -> torch.Tensor:
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if key_bias is not None:
        scores.add_(key_bias[:, None, None, :].to(scores.dtype))
    return scores.softmax(-1)


def _of(key_bias: torch.Tensor | None, chunk: slice) -> torch.Tensor | None:
    return None if key_bias is None else key_bias[chunk]


def _chunks(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
    batch_size, num_heads, num_queries, _ = query.shape
    size = max(1, _CHUNK_WEIGHTS // (num_heads * num_queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch_size, size)]


__all__ = ["chunked_attention"]
