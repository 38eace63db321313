"""Tokens that were merged or pruned, laid out over all tokens again.

Shapes: B batch, H heads, S tokens of the whole sequence.
"""

from typing import Any

import torch

from hf_vit.models.token_reduction import ungrouped


def of_all_tokens(body: Any, outputs: Any) -> torch.Tensor:
    """The last hidden states, of every token of the sequence that of its group where tokens were merged: (batch,
    tokens of the whole sequence, hidden_size).

    Args:
        body: an `HfViTModel`.
        outputs: its outputs.
    """
    if getattr(outputs, "token_groups", None) is None:
        return outputs.last_hidden_state
    later = body.config.num_prefix_tokens - body.config.num_layer_prefix_tokens  # tokens of class-attention layers
    tokens = outputs.last_hidden_state
    return torch.cat((tokens[:, :later], ungrouped(tokens[:, later:], outputs.token_groups[-1])), dim=1)


def ungrouped_attention(attention: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Attention (batch, heads, queries, keys) of a layer among groups of tokens, as attention among the tokens: the
    members of a group look where it looks, and share what it gets.

    Args:
        group: of each token, shape (batch, tokens of the whole sequence). Keys before the groups, and queries that are
            such keys alone, stay as they are.
    """
    num_queries, num_keys = attention.shape[2:]
    first = num_keys - int(group.max()) - 1
    alone = torch.arange(first, device=group.device).expand(group.shape[0], -1)
    keys = torch.cat((alone, group + first), dim=1)[:, None, None]  # (B, 1, 1, S)
    sizes = torch.zeros(group.shape[0], 1, 1, num_keys, device=group.device)
    sizes = sizes.scatter_add(3, keys, torch.ones_like(keys, dtype=sizes.dtype))
    attention = (attention / sizes).take_along_dim(keys, dim=3)
    return attention.take_along_dim(keys.transpose(2, 3), dim=2) if num_queries == num_keys else attention


def ungrouped_attentions(body: Any, outputs: Any) -> list[torch.Tensor]:
    """The attention of each layer among the tokens of the whole sequence, see [`ungrouped_attention`]."""
    if getattr(outputs, "token_groups", None) is None:
        return list(outputs.attentions)
    before = (*outputs.token_groups[:-1], *outputs.token_groups[-1:] * body.config.num_class_layers)
    return [ungrouped_attention(attention, group) for attention, group in zip(outputs.attentions, before)]
