"""What positions say about each other.

Shapes: P prefix tokens, N patches, D hidden size, H heads.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.models.position_encoding import resample_table


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
