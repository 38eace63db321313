"""Outputs of the Vision Transformer's models."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class HfViTImageClassifierOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`): present if labels were given.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): the prediction; with two heads, their mean.
        class_logits (`torch.Tensor` of shape `(batch, num_labels)`): of the class head, if there are two.
        distillation_logits (`torch.Tensor` of shape `(batch, num_labels)`): of the distillation head, likewise.
        token_logits (`torch.Tensor` of shape `(batch, patches, num_labels)`): of each patch, with
            `config.use_token_labeling_head`.
        hidden_states (tuple of `torch.Tensor` of shape `(batch, tokens, hidden_size)`): if asked for; the embeddings
            and the output of each layer.
        attentions (tuple of `torch.Tensor` of shape `(batch, heads, tokens, tokens)`): if asked for.
        token_groups (tuple of `torch.Tensor` of shape `(batch, tokens)`): see [`HfViTModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    token_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    token_groups: tuple[torch.Tensor, ...] | None = None


@dataclass
class HfViTModelOutput(BaseModelOutputWithPooling):
    """
    Args:
        token_groups (tuple of `torch.Tensor` of shape `(batch, tokens)`): where tokens are merged or pruned: for each
            of the embeddings' tokens the index of the token that it is in, in the embeddings and after each layer; -1
            if it is in none.
    """

    token_groups: tuple[torch.Tensor, ...] | None = None


__all__ = ["HfViTImageClassifierOutput", "HfViTModelOutput"]
