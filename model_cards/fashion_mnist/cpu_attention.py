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
            sizes = query[chunk].shape[:2]
            queries, keys, values, grads = (_side_by_side(t[chunk]) for t in (query, key, value, grad_output))
            weights = _weights(queries, keys, ctx.scaling, _of(key_bias, chunk))  # (B * H, Q, S)
            grad_value[chunk] = torch.bmm(weights.transpose(1, 2), grads).unflatten(0, sizes)
            grad_scores = softmax_backward(torch.bmm(grads, values.transpose(1, 2)), weights)
            grad_query[chunk] = _scaled_bmm(grad_scores, keys, ctx.scaling).unflatten(0, sizes)
            grad_key[chunk] = _scaled_bmm(grad_scores.transpose(1, 2), queries, ctx.scaling).unflatten(0, sizes)
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
    batch_size, num_heads, num_queries, _ = query.shape
    output = value.new_empty(batch_size, num_queries, num_heads, value.shape[3]).transpose(1, 2)  # as it is read next
    for chunk in _chunks(query, key):
        queries, keys, values = (_side_by_side(tensor[chunk]) for tensor in (query, key, value))
        weights = _weights(queries, keys, scaling, _of(key_bias, chunk))
        output[chunk] = torch.bmm(weights, values).unflatten(0, query[chunk].shape[:2])
    return output


def _side_by_side(heads: torch.Tensor) -> torch.Tensor:
    """(B, H, T, K) -> (B * H, T, K) in one piece. What lies apart, as heads of one matmul do, takes as long to lay
    together after a transposition as the matmul itself takes."""
    return heads.flatten(0, 1)


def _weights(query: torch.Tensor, key: torch.Tensor, scaling: float, key_bias: torch.Tensor | None) -> torch.Tensor:
    scores = _scaled_bmm(query, key.transpose(1, 2), scaling)
    if key_bias is not None:  # (B, S)
        scores.unflatten(0, (len(key_bias), -1)).add_(key_bias[:, None, None, :].to(scores.dtype))
    return torch.softmax(scores, -1, out=scores)  # in new memory it takes twice as long


def _scaled_bmm(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=factor)


def _of(key_bias: torch.Tensor | None, chunk: slice) -> torch.Tensor | None:
    return None if key_bias is None else key_bias[chunk]


def _chunks(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
    batch_size, num_heads, num_queries, _ = query.shape
    size = max(1, _CHUNK_WEIGHTS // (num_heads * num_queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch_size, size)]


__all__ = ["chunked_attention"]
