"""Parts of a model with their parameters and multiply-accumulates, and what several models share.

Letters: B batch, T tokens, N patches, D hidden size, H heads, K head size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_vit.models.strict_config import GATED_ACTIVATIONS


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Multiply-accumulates are those of matmuls and convolutions, of the whole batch. Sums, norms, activations and
    softmax have none.

    Args:
        name: of the part.
        parameters: how many it has.
        macs: of a forward pass.
        backward_macs: of a backward pass; two for one of the forward pass, but one where the input needs no gradient.
        recomputed_macs: what gradient checkpointing computes again in the backward pass.
    """

    name: str
    parameters: int
    macs: int = 0
    backward_macs: int = 0
    recomputed_macs: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass, two a multiply-accumulate."""
        return 2 * self.macs


def part(name: str, parameters: int, macs: int = 0, recomputed: int = 0, without_gradient: int = 0) -> Part:
    """A part whose backward pass takes two multiply-accumulates for one of the forward pass, but one for those
    `without_gradient`, whose input needs none."""
    return Part(name, parameters, macs, 2 * macs - without_gradient, recomputed)


def norm_parameters(norm_type: str, size: int) -> int:
    """Scale and, of `layer_norm`, shift: 2 n or n."""
    return 2 * size if norm_type == "layer_norm" else size


def linear_parameters(in_features: int, out_features: int, bias: bool = True) -> int:
    """Weights and biases of a linear map: in * out + out."""
    return in_features * out_features + out_features * bias


def mlp_width(hidden_act: str, intermediate_size: int) -> int:
    """Outputs of the first linear map of an MLP: M, or 2 M where one half gates the other."""
    return intermediate_size * (2 if hidden_act in GATED_ACTIVATIONS else 1)


def mlp_parameters(hidden_size: int, intermediate_size: int, hidden_act: str, bias: bool = True) -> int:
    """Two linear maps: D M' + M' + M D + D, with M' = M, or 2 M where one half gates the other."""
    width = mlp_width(hidden_act, intermediate_size)
    return linear_parameters(hidden_size, width, bias) + linear_parameters(intermediate_size, hidden_size, bias)


def mlp_macs(tokens: int, hidden_size: int, intermediate_size: int, hidden_act: str = "gelu") -> int:
    """Multiply-accumulates of an MLP: T D M' + T M D, so 2 T D M without gating (M' = M), 3 T D M with it."""
    return tokens * hidden_size * (mlp_width(hidden_act, intermediate_size) + intermediate_size)


def attention_macs(tokens: int, hidden_size: int) -> int:
    """Multiply-accumulates of self-attention: 4 T D^2 + 2 T^2 D, namely queries, keys and values 3 T D^2, scores
    T^2 D, values T^2 D, projection T D^2. The number of heads does not matter."""
    return 4 * tokens * hidden_size**2 + 2 * tokens**2 * hidden_size


def attention_matrix_bytes(batch_size: int, heads: int, queries: int, keys: int, bytes_per_number: int = 4) -> int:
    """Memory of the attention weights of one layer: B H Q S numbers.

    32 images of 640x640 in patches of 16x16 with 8 heads, so 1,600 tokens: 2.44 GiB in fp32.
    """
    return batch_size * heads * queries * keys * bytes_per_number
