"""From the final tokens to one vector.

Shapes: B batch, N patches.
"""

import math
from typing import Any

import torch
from torch import nn

from .attention import attend
from .cpu_linear import linear
from .layers import MLP, make_norm


class MeanPooling(nn.Module):
    """Mean over the patches, each counting as many times as its size: (batch, tokens, hidden_size) -> (batch,
    hidden_size)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        patches = tokens[:, self.num_prefix_tokens :]
        if sizes is None:
            return patches.mean(1)
        weights = (sizes / sizes.sum(1, keepdim=True)).to(patches.dtype)
        return (weights[:, None] @ patches).squeeze(1)


class MaxPooling(MeanPooling):
    """Largest value of each channel over the patches, whatever their sizes: (batch, tokens, hidden_size) -> (batch,
    hidden_size)."""

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        return tokens[:, self.num_prefix_tokens :].amax(1)


class ClassTokenPooling(nn.Module):
    """The class token: (batch, tokens, hidden_size) -> (batch, hidden_size)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.class_token_index = config.class_token_index

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        return tokens[:, self.class_token_index]


class ClassTokenTanhPooling(ClassTokenPooling):
    """The class token through a linear layer and tanh, the pooler of BERT (1810.04805) that ViT's first checkpoints
    have: (batch, tokens, hidden_size) -> (batch, hidden_size), in (-1, 1)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        return linear(self.dense, super().forward(tokens)).tanh()


class ClassTokenMeanPooling(MeanPooling):
    """w * class token + (1 - w) * mean over the patches, as [`MeanPooling`] has it; w is `cls_mean_weight`,
    fixed, or learnt as a sigmoid."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.class_token_index = config.class_token_index
        self.weight = config.cls_mean_weight
        self.weight_logit = None
        if config.learn_cls_mean_weight:
            self.weight_logit = nn.Parameter(torch.full((1,), self.initial_logit))  # FSDP shards no scalars

    @property
    def initial_logit(self) -> float:
        return math.log(self.weight / (1 - self.weight))

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.weight if self.weight_logit is None else self.weight_logit.sigmoid()
        return weight * tokens[:, self.class_token_index] + (1 - weight) * super().forward(tokens, sizes)


class WeightedPooling(nn.Module):
    """A learnt score for each patch, softmax, weighted sum (sequence pooling of CCT, 2104.05704). A patch counts in
    the softmax as many times as its size.

    (batch, tokens, hidden_size) -> (batch, hidden_size)
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        patches = tokens[:, self.num_prefix_tokens :]
        scores = linear(self.score, patches)  # (B, N, 1)
        if sizes is not None:
            scores = scores + sizes.log()[:, :, None].to(scores.dtype)
        weights = scores.softmax(1)
        return (weights.transpose(1, 2) @ patches).squeeze(1)


class AttentionPooling(nn.Module):
    """Multi-head attention of one learnt query over the patches, then an MLP branch: the MAP head of "Scaling Vision
    Transformers" (2106.04560). A patch counts in the attention as many times as its size. As in big_vision, SigLIP
    and timm it has biases and no dropout, whatever the layers do.

    (batch, tokens, hidden_size) -> (batch, hidden_size)
    """

    is_causal = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        self.num_attention_heads = config.num_attention_heads
        hidden_size = config.hidden_size
        self.query = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.kv_proj = nn.Linear(hidden_size, 2 * hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.norm = make_norm(config)
        self.mlp = MLP(hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        patches = tokens[:, self.num_prefix_tokens :]
        batch_size, num_patches, hidden_size = patches.shape
        heads = (self.num_attention_heads, hidden_size // self.num_attention_heads)
        query = linear(self.q_proj, self.query).view(1, 1, *heads).transpose(1, 2).expand(batch_size, -1, -1, -1)
        key, value = (
            linear(self.kv_proj, patches).view(batch_size, num_patches, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        key_bias = None if sizes is None else sizes.log()
        output, _ = attend(self, query, key, value, implementation=self.config._attn_implementation, key_bias=key_bias)
        pooled = linear(self.out_proj, output.reshape(batch_size, hidden_size))
        return pooled + self.mlp(self.norm(pooled))


_POOLINGS = {
    "cls": ClassTokenPooling,
    "cls_tanh": ClassTokenTanhPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "cls_mean": ClassTokenMeanPooling,
    "weighted": WeightedPooling,
    "attention": AttentionPooling,
}


class Pooler(nn.Module):
    """The poolings that `config.pooling` names: (batch, tokens, hidden_size) -> (batch, poolings, hidden_size).

    Each is given how many patches every one of the patches stands for, shape (batch, patches), where that is more than
    one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.poolings = nn.ModuleDict({name: _POOLINGS[name](config) for name in config.poolings})

    def forward(self, tokens: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack([pooling(tokens, sizes) for pooling in self.poolings.values()], dim=1)


__all__ = ["AttentionPooling", "ClassTokenMeanPooling", "Pooler", "WeightedPooling"]
