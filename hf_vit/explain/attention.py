"""What the tokens of a Vision Transformer attend to.

Shapes: B batch, L layers, H heads, T tokens, N patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_vit.explain.groups import of_all_tokens, ungrouped_attentions
from hf_vit.explain.pooling import pooling_weights


@torch.no_grad()
def attention_maps(
    model: PreTrainedModel, pixel_values: torch.Tensor, query: int | torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much attention a query gives to each patch of the images, in each head and through all layers.

    A model that pools its class token is asked for what that token attends to. Where none is pooled, the patches stand
    in its place, each with the weight that it has in the pooled vector; see [`pooling_weights`].

    Args:
        model: an `HfViTModel` or a model with one inside.
        pixel_values: normalised images, shape (batch, channels, height, width), of any size that the model takes.
        query: another token, by its index in the sequence (`config.distillation_token_index`, for instance), or the
            weight of each token, shape (tokens,) or (batch, tokens).

    Returns:
        The attention, shape (batch, layers, heads, rows, columns), and its rollout over the layers, shape
        (batch, rows, columns). Each map sums to one less what the prefix tokens get.

    Raises:
        ValueError: if the images do not fit the model or the query does not fit the tokens.
    """
    body: Any = model.base_model
    grid_size = body.embeddings.patch_embedding.grid_size(pixel_values)
    outputs = body(pixel_values, output_attentions=True, return_dict=True)
    last_hidden_state = of_all_tokens(body, outputs)
    if query is None:
        query = pooling_weights(body, last_hidden_state)
    num_tokens = last_hidden_state.shape[1]
    layers = [attention_of_all_tokens(attention, num_tokens) for attention in ungrouped_attentions(body, outputs)]
    attentions, rollout = torch.stack(layers, dim=1), attention_rollout(layers)  # (B, L, H, T, T), (B, T, T)
    return attention_to_grid(attentions, query, grid_size), attention_to_grid(rollout, query, grid_size)


def attention_of_all_tokens(attention: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Attention (batch, heads, queries, keys) of a layer that leaves tokens out, as those before class-attention
    layers and these themselves do (2103.17239), over all tokens: those attend to themselves."""
    return among_all_tokens(attention, torch.eye(num_tokens, dtype=attention.dtype, device=attention.device))


def among_all_tokens(attention: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Attention (batch, heads, queries, keys) over all tokens, (batch, heads, tokens, tokens), where `others`
    (tokens, tokens) stands for that of the tokens which the layer leaves out."""
    num_tokens = len(others)
    num_queries, num_keys = attention.shape[2:]
    if num_queries == num_keys == num_tokens:
        return attention
    whole = others.repeat(*attention.shape[:2], 1, 1)  # (B, H, T, T)
    first = num_tokens - num_keys  # without the class tokens, which come first
    whole[:, :, first : first + num_queries, first:] = attention
    return whole


def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention through all layers (attention rollout, 2005.00928): the product of each layer's attention, averaged
    over heads and mixed half and half with the identity for the residual connection.

    Args:
        attentions: from the first layer to the last, each of shape (batch, heads, tokens, tokens).

    Returns:
        fp32 tensor of shape (batch, tokens, tokens): row i says how much of each input token is in output token i.
        Rows sum to one.
    """
    rollout: Any = None
    for attention in attentions:
        mean = attention.float().mean(1)  # (B, T, T)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        rollout = mixed if rollout is None else mixed @ rollout
    return rollout


def attention_to_grid(attention: torch.Tensor, query: int | torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """The row of a query in the attention, laid out over the patches; what goes to prefix tokens is left out.

    Args:
        attention: shape (batch, ..., tokens, tokens), for instance one layer's or a rollout.
        query: a token's index in the sequence, or the weights with which the tokens' rows are summed, shape (tokens,)
            or (batch, tokens).
        grid_size: (rows, columns) of patches, the last tokens of the sequence.

    Returns:
        Tensor of shape (batch, ..., rows, columns).

    Raises:
        ValueError: if the query or the grid does not fit the tokens.
    """
    num_tokens, num_patches = attention.shape[-1], math.prod(grid_size)
    if not 0 < num_patches <= num_tokens:
        raise ValueError(f"grid_size must have from 1 to {num_tokens} patches, got {tuple(grid_size)}")
    if isinstance(query, int):
        if not -num_tokens <= query < num_tokens:
            raise ValueError(f"query must be the index of one of {num_tokens} tokens, got {query}")
        row = attention[..., query, :]  # (B, ..., T)
    else:
        if query.shape not in ((num_tokens,), (attention.shape[0], num_tokens)):
            raise ValueError(
                f"query must have shape ({num_tokens},) or ({attention.shape[0]}, {num_tokens}), "
                f"got {tuple(query.shape)}"
            )
        weights = query.to(attention.dtype).expand(attention.shape[0], -1)  # (B, T)
        row = torch.einsum("bq,b...qk->b...k", weights, attention)
    return row[..., num_tokens - num_patches :].unflatten(-1, tuple(grid_size))


@torch.no_grad()
def attention_distance(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Mean distance between a patch and what it attends to, by layer and head (ViT, 2010.11929, figure 7): small for a
    head that looks around a patch, large for one that looks at the whole image.

    Args:
        model: an `HfViTModel` or a model with one inside.
        pixel_values: normalised images, shape (batch, channels, height, width).

    Returns:
        fp32 tensor of shape (batch, layers, heads), in pixels; class-attention layers, in which no patch attends, are
        left out. What goes to prefix tokens does not count.
    """
    body: Any = model.base_model
    rows, columns = body.embeddings.patch_embedding.grid_size(pixel_values)
    attentions = body(pixel_values, output_attentions=True, return_dict=True).attentions
    height, width = body.config.patch_shape
    y, x = torch.meshgrid(torch.arange(rows) * height, torch.arange(columns) * width, indexing="ij")
    centres = torch.stack((y, x), -1).flatten(0, 1).float().to(pixel_values.device)  # (N, 2)
    distances = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for attention in attentions[: body.config.num_hidden_layers]:
        among_patches = attention[:, :, -rows * columns :, -rows * columns :].float()
        among_patches = among_patches / among_patches.sum(-1, keepdim=True)
        found.append((among_patches * distances).sum(-1).mean(-1))
    return torch.stack(found, dim=1)
