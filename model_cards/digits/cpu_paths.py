"""Which way each operation takes on a CPU: the one place that chooses, for inference and for training.

The choice depends on the tensors, on who made the processor, on what it can do and on `HF_VIT_CPU_PATHS` alone, never
on a clock, so that results can be reproduced. A way is taken where it was measured: on processors like these two, and
on no other. Each function returns the reason why a way is not taken, or None if it is; `hf-vit doctor --speed` prints
the reasons. Speeds are those of the way beside torch's own; a dash: not taken.

| Way | AMD EPYC with AVX-512 and its bf16, no AMX | Intel Xeon with AMX |
|---|---|---|
| inference: fp32 linear layers by oneDNN | 1.0x to 1.4x | about 1x |
| inference: weights packed by `pack_weights` | ViT 1.0x to 1.1x, bf16 1.0x to 1.2x | ViT 1.0x to 1.2x, bf16 1.1x |
| inference: GELU, ReLU and the residual in the matmul, where a layer goes by oneDNN | ViT 1.1x to 1.3x on top, bf16 \
1.05x to 1.2x | ViT 1.0x to 1.2x on top, bf16 1.0x to 1.2x |
| inference: bf16 attention as batched matmuls, up to 1,024 keys | several times for short sequences | - (below 1x) |
| training: fp32 linear layers by oneDNN | 1.2x to 2x | - (0.8x) |
| training: bf16 attention as batched matmuls, up to 1,024 keys | several times for short sequences | the backward \
pass alone |
| training: drop path that leaves out dropped samples | 1.2x at a rate of 0.3, 1.4x at 0.6 | 1.1x to 1.3x |
| training: fp32 for the backward of the fused attention in bf16 | up to 5x for short sequences | likewise |
| a few rows at a time over packed weights, one thread, 1 / 4 / 16 / 64 rows: fp32; bf16 | 1.0 / 2.0 / 1.6 / 1.2x; \
2.4 / 2.6 / 1.5 / 1.2x | translation 1.0x to 1.6x of Marian |
"""

import torch
from torch import nn

from .cpu_operators import Guarded, is_plain_eager, onednn_linear, pack_weight, softmax_backward
from .cpu_processor import processor_flags, processor_vendor

# Beyond this many keys the fused kernel is the faster one in bf16 too.
_MAX_KEYS_FOR_MATMULS = 1024
_HAS_AMX = "amx_bf16" in processor_flags()


def measured_processor(vendor: str, flags: frozenset[str]) -> str | None:
    """The column of the table above that speaks for a processor, "amd" or "intel", or None.

    Args:
        vendor: see [`processor_vendor`].
        flags: see [`processor_flags`].
    """
    if vendor == "AuthenticAMD" and flags >= {"avx512_f", "avx512_bf16"}:
        return "amd"
    if vendor == "GenuineIntel" and flags >= {"avx512_f", "avx512_bf16", "amx_bf16"}:
        return "intel"
    return None


PROCESSOR = measured_processor(processor_vendor(), processor_flags())


def _why_plain() -> str | None:
    if Guarded.mode == "plain":
        return "HF_VIT_CPU_PATHS=plain"
    return None if PROCESSOR else "not measured on a processor like this one"


def why_not_onednn_linear(states: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Of a linear layer and its gradients by oneDNN.

    Args:
        states: shape (..., in_features).
        weight: shape (out_features, in_features).
    """
    if not isinstance(states, torch.Tensor):
        return "traced symbolically"
    if weight.dtype != torch.float32 or states.dtype != torch.float32:
        return f"for float32 alone, not {weight.dtype}".replace("torch.", "")
    if weight.device.type != "cpu" or states.device.type != "cpu":
        return f"for a CPU alone, not {weight.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the precision"
    if not is_plain_eager(states, weight):
        return "compiled, traced, transformed or watched, or tensors of a class of their own"
    if states.numel() == 0:
        return "nothing to compute"
    if PROCESSOR == "intel" and torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        return "torch's own is the faster one in training on a processor with AMX"
    return _why_plain() or onednn_linear.why_not()


def why_not_packed(weight: torch.Tensor) -> str | None:
    """Of the weight of a linear layer, shape (out_features, in_features), laid out for oneDNN."""
    if type(weight) is not nn.Parameter:  # packed ones among them
        return f"a weight of class {type(weight).__name__}"
    if weight.device.type != "cpu":
        return f"for a CPU alone, not {weight.device.type}"
    if weight.dtype not in pack_weight:
        return f"for float32 and bfloat16 alone, not {weight.dtype}".replace("torch.", "")
    if weight.is_inference() or weight.numel() == 0:
        return "an inference tensor or an empty one"
    if weight.untyped_storage().nbytes() != weight.nbytes:
        return "it shares its memory with other tensors"
    return _why_plain() or onednn_linear.why_not() or pack_weight[weight.dtype].why_not()


def why_not_matmul_attention(query: torch.Tensor, key: torch.Tensor) -> str | None:
    """Of unmasked attention as batched matmuls, forward and backward.

    Args:
        query: shape (batch, heads, queries, head size); `key` likewise with the number of keys.
    """
    if query.device.type != "cpu":
        return f"for a CPU alone, not {query.device.type}"
    if query.dtype != torch.bfloat16:
        return f"for bfloat16 alone, not {query.dtype}".replace("torch.", "")
    if key.shape[2] > _MAX_KEYS_FOR_MATMULS:
        return f"the fused kernel is faster beyond {_MAX_KEYS_FOR_MATMULS} keys"
    if not is_plain_eager(query, key):
        return "compiled, traced, transformed or watched, or tensors of a class of their own"
    return _why_plain() or softmax_backward.why_not()


def fuses_forward_attention() -> bool:
    """Whether the fused kernel is the faster one in bf16 all the same, but for the backward pass."""
    return PROCESSOR == "intel"


def why_not_fp32_attention(query: torch.Tensor) -> str | None:
    """Of the fused kernel in fp32 for the training of queries (batch, heads, queries, head size) in bf16: its
    backward takes five times as long in bf16 for short sequences, and longer for long ones too."""
    if reason := _why_plain():
        return reason
    if query.device.type != "cpu":
        return f"for a CPU alone, not {query.device.type}"
    if query.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
        return "for bfloat16 alone"
    if not (torch.is_grad_enabled() and query.requires_grad):
        return "for training alone"
    return None


def why_not_skip_dropped(states: torch.Tensor) -> str | None:
    """Of a residual branch that is computed for those samples alone that drop path keeps.

    Args:
        states: shape (batch, tokens, hidden_size).
    """
    if states.device.type != "cpu":
        return f"for a CPU alone: {states.device.type} would be waited for"
    if not is_plain_eager(states):
        return "compiled, traced, transformed or watched, or tensors of a class of their own"
    return _why_plain()


def strided_convolution_may_be_wrong(features: torch.Tensor) -> bool:
    """Whether torch's convolution with a stride above 1 is not to be trusted, whatever `HF_VIT_CPU_PATHS` says: in
    bf16 on a CPU with AMX, where oneDNN's kernel gives other results altogether for some shapes (a kernel and stride
    of (1, 4); outputs one pixel wide, pytorch/pytorch#169688). Strides of 1 are not concerned."""
    in_bf16 = features.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    return _HAS_AMX and features.device.type == "cpu" and in_bf16


__all__ = [
    "fuses_forward_attention",
    "measured_processor",
    "strided_convolution_may_be_wrong",
    "why_not_fp32_attention",
    "why_not_matmul_attention",
    "why_not_onednn_linear",
    "why_not_packed",
    "why_not_skip_dropped",
]
