"""Show what a Vision Transformer looks at, and what its positions say about each other.

Plain functions from a model or its outputs to tensors. The models are those of this package, also when they were
loaded by `trust_remote_code`; put them in eval mode first, or dropout is part of what is seen.

Shapes: B batch, L layers, H heads, T tokens, N patches, D hidden size, K head size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.models.position_encoding import resample_table
from hf_vit.models.token_reduction import ungrouped


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
    last_hidden_state, attentions = of_all_tokens(body, outputs), outputs.attentions
    if query is None:
        query = pooling_weights(body, last_hidden_state)
    if getattr(outputs, "token_groups", None) is not None:  # code of version 0.1.0 knows none
        before = (*outputs.token_groups[:-1], *outputs.token_groups[-1:] * body.config.num_class_layers)
        attentions = [ungrouped_attention(each, group) for each, group in zip(attentions, before)]
    layers = [attention_of_all_tokens(attention, last_hidden_state.shape[1]) for attention in attentions]
    attentions, rollout = torch.stack(layers, dim=1), attention_rollout(layers)  # (B, L, H, T, T), (B, T, T)
    return attention_to_grid(attentions, query, grid_size), attention_to_grid(rollout, query, grid_size)


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


def attention_of_all_tokens(attention: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Attention (batch, heads, queries, keys) of a layer that leaves tokens out, as those before class-attention
    layers and these themselves do (2103.17239), over all tokens: those attend to themselves."""
    num_queries, num_keys = attention.shape[2:]
    if num_queries == num_keys == num_tokens:
        return attention
    whole = torch.eye(num_tokens, dtype=attention.dtype, device=attention.device)
    whole = whole.repeat(*attention.shape[:2], 1, 1)  # (B, H, T, T)
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
def pooling_weights(model: PreTrainedModel, last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The weight of each token in the pooled vector.

    Class token and means have the same weights for every image; weighted and attention pooling (mean over its heads)
    have those that they find for it. Max pooling has no weights: in their place is each patch's share of the channels
    in which it is the largest. Several poolings count alike. A model that does not pool is taken to read its class
    token or, without one, the mean of its patches.

    Args:
        model: an `HfViTModel` or a model with one inside.
        last_hidden_state: the output of that `HfViTModel`, shape (batch, tokens, hidden_size); see [`of_all_tokens`].

    Returns:
        fp32 tensor of shape (batch, tokens). Rows sum to one.
    """
    body: Any = model.base_model
    num_prefix = body.config.num_prefix_tokens
    patches = last_hidden_state[:, num_prefix:]
    if body.pooler is None:
        poolings = [("cls" if body.config.use_class_token else "mean", None)]
    else:
        poolings = list(zip(body.config.poolings, body.pooler.poolings.values()))
    weights = last_hidden_state.new_zeros(last_hidden_state.shape[:2], dtype=torch.float32)  # (B, T)
    for name, module in poolings:
        class_share, patch_weights = _WEIGHTS[name](module, patches)
        weights[:, num_prefix:] += (1 - class_share) * patch_weights
        if class_share:
            weights[:, body.config.class_token_index] += class_share
    return weights / len(poolings)


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


@torch.no_grad()
def position_similarity(model: PreTrainedModel, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Cosine similarity of each patch's position embedding with every other's (ViT, 2010.11929, figure 7).

    Args:
        model: an `HfViTModel` or a model with one inside, whose `position_embedding` is `learned`, `learned_2d`,
            `sincos_1d` or `sincos_2d`.
        grid_size: (rows, columns) of patches; those of `config.image_size` when None.

    Returns:
        fp32 tensor of shape (rows, columns, rows, columns): `[i, j]` is the map of the patch in row i and column j.
        A position that is all zeros has similarity 0 with every other and with itself.

    Raises:
        ValueError: if the positions are of another kind, or the grid is empty.
    """
    body, grid_size = _positions_of(model, grid_size, ("learned", "learned_2d", "sincos_1d", "sincos_2d"))
    table = body.embeddings.position_embedding(grid_size)[0].float()  # ([P +] N, D)
    patches = nn.functional.normalize(table[-math.prod(grid_size) :], dim=-1)
    return (patches @ patches.T).reshape(*grid_size, *grid_size)


@torch.no_grad()
def relative_position_bias(model: PreTrainedModel, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
    """The bias that relative positions add to the scores, by the offset of the query from the key.

    Args:
        model: an `HfViTModel` or a model with one inside, whose `position_embedding` is `relative_bias`.
        grid_size: (rows, columns) of patches; those of `config.image_size` when None.

    Returns:
        fp32 tensor of shape (heads, 2 * rows - 1, 2 * columns - 1): `[h, rows - 1 + r, columns - 1 + c]` is the bias
        of head h for a query r rows below and c columns to the right of the key.

    Raises:
        ValueError: if the positions are of another kind, or the grid is empty.
    """
    body, (rows, columns) = _positions_of(model, grid_size, ("relative_bias",))
    table = resample_table(body.relative_position_bias.grid, (2 * rows - 1, 2 * columns - 1))
    return table.float().permute(2, 0, 1)


@torch.no_grad()
def rotary_kernel(model: PreTrainedModel, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Effect of rotary positions alone on the score of a query with a key equal to it: the mean, over the pairs of
    channels that turn together, of the cosine of the angle between the two.

    Args:
        model: an `HfViTModel` or a model with one inside, whose `position_embedding` is `rope_2d` or `rope_axial`.
        grid_size: (rows, columns) of patches; those of `config.image_size` when None.

    Returns:
        fp32 tensor of shape (2 * rows - 1, 2 * columns - 1), in [-1, 1]: `[rows - 1 + r, columns - 1 + c]` for a query
        r rows below and c columns to the right of the key; 1 at no offset.

    Raises:
        ValueError: if the positions are of another kind, or the grid is empty.
    """
    body, (rows, columns) = _positions_of(model, grid_size, ("rope_2d", "rope_axial"))
    row, column = torch.arange(1 - rows, rows)[:, None], torch.arange(1 - columns, columns)[None, :]
    kernel: Any = 0
    for table in body.rotary_embedding((rows, columns)):  # cosines, then sines: ([P +] N, head size)
        table = table[-rows * columns :].float().unflatten(0, (rows, columns))
        queries = table[row.clamp(min=0), column.clamp(min=0)]  # (2 rows - 1, 2 columns - 1, head size)
        kernel = kernel + (queries * table[(-row).clamp(min=0), (-column).clamp(min=0)]).mean(-1)
    return kernel


def _positions_of(
    model: PreTrainedModel, grid_size: tuple[int, int] | None, kinds: Sequence[str]
) -> tuple[Any, tuple[int, int]]:
    body: Any = model.base_model
    if not set(body.config.position_embeddings) & set(kinds):
        given = body.config.position_embedding
        raise ValueError(f"position_embedding of the model must be {' or '.join(kinds)}, got {given!r}")
    grid: Any = body.config.grid_size if grid_size is None else tuple(grid_size)
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid_size must be (rows, columns), at least 1 each, got {grid}")
    return body, grid
