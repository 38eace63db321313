"""Positions on a grid of patches: added to the tokens, added to the attention scores, or rotating queries and keys.

Every scheme is laid out for the grid of `config.image_size` and follows an image of another size to its own grid:
learnt tables are resampled, closed forms are evaluated at the coordinates that a patch of the new grid has on the old.

Shapes: N patches, H heads.
"""

import math
from typing import Any

import torch
from torch import nn


def _is_known(condition: Any) -> bool:
    """Whether a condition on sizes holds; of one on the symbols of a graph for many sizes, whether it always does, so
    that the graph is not bound to the sizes of its example."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def grid_coordinates(
    grid_size: tuple[int, int],
    position_grid: tuple[int, int],
    device: torch.device | None = None,
    offsets: tuple[float, float] = (0.5, 0.5),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch in steps of the position grid, on which patch (i, j) sits at exactly (i, j).

    Args:
        grid_size: (rows, columns) of the patches.
        position_grid: (rows, columns) of steps that the patches are spread over.
        device: of the result.
        offsets: added before the coordinates are scaled, and taken off afterwards.

    Returns:
        Two fp32 tensors of shape (rows * columns,), in raster order.
    """
    axes = []
    for length, native_length in zip(grid_size, position_grid):
        positions = torch.arange(length, dtype=torch.float32, device=device)
        axes.append((positions + offsets[0]) * (native_length / length) - offsets[1])
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return rows.flatten(), columns.flatten()


def sincos_table(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Sines, then cosines, of the positions at wavelengths from 2 pi to 2 pi * 10,000 (1706.03762).

    Args:
        positions: fp32, shape (...).
        size: even number of columns.

    Returns:
        fp32 tensor of shape (..., size).
    """
    exponents = torch.arange(size // 2, dtype=torch.float32, device=positions.device) / (size / 2)
    angles = positions[..., None] / 10_000**exponents  # (..., size / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def resample_table(table: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Bicubic resampling of a table of shape (rows, columns, size) to another grid, axis by axis, antialiased along an
    axis that shrinks."""
    rows, columns = grid_size
    return _resample_rows(_resample_rows(table, rows).transpose(0, 1), columns).transpose(0, 1)


def _resample_rows(table: torch.Tensor, num_rows: int) -> torch.Tensor:
    if _is_known(num_rows == len(table)):
        return table
    images = table.permute(1, 2, 0)[:, :, None].float()  # (columns, size, 1, rows)

    def resized(antialias: bool) -> torch.Tensor:
        return nn.functional.interpolate(images, size=(1, num_rows), mode="bicubic", antialias=antialias)

    if _is_known(num_rows < len(table)):
        resampled = resized(antialias=True)
    elif _is_known(num_rows >= len(table)):
        resampled = resized(antialias=False)
    else:
        shrinks = torch.scalar_tensor(num_rows, device=table.device) < len(table)
        resampled = torch.where(shrinks, resized(antialias=True), resized(antialias=False))
    return resampled[:, :, 0].permute(2, 0, 1).to(table.dtype)


class LearnedPosition(nn.Module):
    """One learnt vector per patch, and per prefix token if they have positions.

    `forward(grid_size)` -> (1, [prefix +] patches, hidden_size)
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        rows, columns = config.grid_size
        self.grid = nn.Parameter(torch.zeros(rows, columns, config.hidden_size))
        num_positions = config.num_prefix_positions(config.absolute_position)
        self.prefix = nn.Parameter(torch.zeros(num_positions, config.hidden_size)) if num_positions else None
        self.num_registers_without = config.num_layer_prefix_tokens - num_positions if num_positions else 0

    def table(self) -> torch.Tensor:
        return self.grid

    def forward(self, grid_size: tuple[int, int]) -> torch.Tensor:
        positions = resample_table(self.table(), grid_size).flatten(0, 1)
        if self.prefix is None:
            return positions[None]
        prefix: torch.Tensor = self.prefix
        if self.num_registers_without:
            prefix = nn.functional.pad(prefix, (0, 0, 0, self.num_registers_without))
        return torch.cat((prefix, positions))[None]


class LearnedRowColumnPosition(LearnedPosition):
    """One learnt vector per row plus one per column (`learned_2d`); the rest as in [`LearnedPosition`]."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        rows, columns = config.grid_size
        del self.grid
        self.rows = nn.Parameter(torch.zeros(rows, 1, config.hidden_size))
        self.columns = nn.Parameter(torch.zeros(1, columns, config.hidden_size))

    def table(self) -> torch.Tensor:
        return self.rows + self.columns


class FixedPosition(nn.Module):
    """A closed form of the grid, kept for the native grid in the buffer `table`, which is not saved, and computed for
    any other.

    Args:
        config: gives the grid, the position grid and the prefix tokens.
        scheme: a name in `config.position_embeddings`.
    """

    table: torch.Tensor

    def __init__(self, config: Any, scheme: str):
        super().__init__()
        self.scheme = scheme
        self.native_grid_size = config.grid_size
        self.position_grid = config.position_grid
        self.num_prefix_tokens = config.num_layer_prefix_tokens
        self.has_prefix_positions = config.num_prefix_positions(scheme) > 0

    def patch_coordinates(self, grid_size: tuple[int, int], device: torch.device | None) -> Any:
        return grid_coordinates(grid_size, self.position_grid, device)

    def coordinates(self, grid_size: tuple[int, int], device: torch.device | None) -> list[torch.Tensor]:
        """Rows and columns of the tokens that have positions; prefix tokens lie side by side above the image."""
        rows, columns = self.patch_coordinates(grid_size, device)
        if self.has_prefix_positions:
            prefix = torch.arange(self.num_prefix_tokens, dtype=torch.float32, device=device)
            rows, columns = torch.cat((torch.full_like(prefix, -1.0), rows)), torch.cat((prefix, columns))
        return [rows, columns]

    def compute_table(self, grid_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
        """The table of a grid."""
        raise NotImplementedError

    def is_native(self, grid_size: tuple[int, int]) -> bool:
        return all(_is_known(length == native) for length, native in zip(grid_size, self.native_grid_size))

    def _apply(self, fn: Any, recurse: Any = True) -> Any:
        # What moves and converts modules goes through here, `to_empty` too, which leaves a buffer without its values.
        super()._apply(fn, recurse)
        if type(self.table) is torch.Tensor and not self.table.is_meta:
            with torch.no_grad():
                self.table.copy_(self.compute_table(self.native_grid_size, self.table.device))
        return self


def fill_meta_tables(module: nn.Module, incompatible_keys: Any = None) -> None:
    """Compute the tables that are still on the meta device where the module's parameters are not: after
    `load_state_dict(..., assign=True)`, as whose hook this can be registered."""
    device = next(module.parameters()).device
    for part in module.modules():
        if isinstance(part, FixedPosition) and part.table.is_meta and device.type != "meta":
            part.to_empty(device=device)


class SinCosPosition(FixedPosition):
    """Fixed sines and cosines: of the index in raster order (`sincos_1d`), or of the column in the first half of
    the channels and the row in the second (`sincos_2d`, MAE, 2111.06377).

    `forward(grid_size)` -> (1, [prefix +] patches, hidden_size)
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.absolute_position)
        self.hidden_size = config.hidden_size
        self.two_dimensional = self.scheme == "sincos_2d"
        # Like a parameter in the dtype of the model that is being made: it is added to the tokens.
        table = self.compute_table(config.grid_size).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)

    def compute_table(self, grid_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
        if self.two_dimensional:
            rows, columns = self.coordinates(grid_size, device)
            halves = [sincos_table(axis, self.hidden_size // 2) for axis in (columns, rows)]
            return torch.cat(halves, dim=-1)
        rows, columns = grid_coordinates(grid_size, self.position_grid, device)
        positions = rows * self.position_grid[1] + columns
        if self.has_prefix_positions:
            prefix = torch.arange(self.num_prefix_tokens, dtype=torch.float32, device=device)
            positions = torch.cat((prefix, positions + self.num_prefix_tokens))
        return sincos_table(positions, self.hidden_size)

    def forward(self, grid_size: tuple[int, int]) -> torch.Tensor:
        if self.is_native(grid_size):
            return self.table[None]
        return self.compute_table(grid_size, self.table.device)[None].to(self.table.dtype)


class RotaryPosition(FixedPosition):
    """Axial rotary embedding: half of each head turns with the row, half with the column, on coordinates scaled to
    [-1, 1] over the image, with periods from 1 to `rope_theta` (DINOv3, 2508.10104). Prefix tokens without positions
    are not turned.

    `forward(grid_size)` -> cosines and sines, each (prefix + patches, head size)
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.rotary_position)
        self.theta = config.rope_base
        self.offset = config.rope_grid_offset
        self.has_position_grid = config.position_grid_size is not None
        self.head_dim, _ = config.head_dims
        self.register_buffer("table", self.compute_table(config.grid_size), persistent=False)

    def compute_table(self, grid_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
        """Cosines and sines, shape (2, prefix + patches, head size)."""
        num_frequencies = self.head_dim // 4
        exponents = torch.arange(num_frequencies, dtype=torch.float32, device=device) / num_frequencies
        angles = self.angles(grid_size, self.theta**exponents).repeat(1, 2)
        if not self.has_prefix_positions:
            angles = nn.functional.pad(angles, (0, 0, self.num_prefix_tokens, 0))
        return torch.stack((angles.cos(), angles.sin()))  # (tokens, head size): row, column, row, column

    def angles(self, grid_size: tuple[int, int], periods: torch.Tensor) -> torch.Tensor:
        """Angles of the tokens that have positions, (tokens, head size / 2), for periods (head size / 4,)."""
        frequencies = 2 * math.pi / periods
        axes = []
        for axis, native_length in zip(self.coordinates(grid_size, periods.device), self.position_grid):
            scaled = 2 * (axis + 0.5) / native_length - 1  # (tokens,)
            axes.append(scaled[:, None] * frequencies)
        return torch.cat(axes, dim=-1)

    def forward(self, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.is_native(grid_size):
            table = self.table
        else:
            table = self.compute_table(grid_size, self.table.device).to(self.table.dtype)
        return table[0], table[1]


class StepRotaryPosition(RotaryPosition):
    """Axial rotary embedding on coordinates in patches, with periods from 2 pi to 2 pi * `rope_theta` (`rope_axial`:
    EVA-02, 2303.11331; RoPE-ViT, 2403.13298); the rest as in [`RotaryPosition`]."""

    def patch_coordinates(self, grid_size: tuple[int, int], device: torch.device | None) -> Any:
        position_grid = self.position_grid if self.has_position_grid else grid_size
        return grid_coordinates(grid_size, position_grid, device, (self.offset, 0.0))

    def angles(self, grid_size: tuple[int, int], periods: torch.Tensor) -> torch.Tensor:
        axes = self.coordinates(grid_size, periods.device)
        return torch.cat([axis[:, None] / periods for axis in axes], dim=-1)


class MixedRotaryPosition(nn.Module):
    """Rotary embedding whose frequencies along rows and columns each head of each layer learns (RoPE-Mixed, RoPE-ViT,
    2403.13298), on coordinates in patches. Prefix tokens are not turned.

    `forward(grid_size)` -> cosines and sines, each (heads, prefix + patches, head size)
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        head_dim, _ = config.head_dims
        self.theta = config.rope_base
        self.position_grid = config.position_grid_size
        self.num_prefix_tokens = config.num_layer_prefix_tokens
        self.frequencies = nn.Parameter(torch.zeros(2, config.num_attention_heads, head_dim // 2))

    def initial_frequencies(self) -> torch.Tensor:
        """Pairs of directions at right angles, turned at random in each head, shape (2, heads, head size / 2)."""
        _, num_heads, size = self.frequencies.shape
        device = self.frequencies.device
        exponents = torch.arange(size // 2, dtype=torch.float32, device=device) / (size // 2)
        turns = 2 * math.pi * torch.rand(num_heads, 1, device=device)
        directions = torch.cat((turns.expand(-1, size // 2), (turns + math.pi / 2).expand(-1, size // 2)), dim=1)
        lengths = self.theta ** -exponents.repeat(2)  # (size,)
        return torch.stack((lengths * directions.cos(), lengths * directions.sin()))

    def forward(self, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        position_grid = grid_size if self.position_grid is None else self.position_grid
        axes = grid_coordinates(grid_size, position_grid, self.frequencies.device, (0.0, 0.0))
        rows, columns = self.frequencies.float()[:, :, None]  # (H, 1, K / 2) each
        angles = axes[0][:, None] * rows + axes[1][:, None] * columns  # (H, N, K / 2)
        angles = nn.functional.pad(angles.repeat(1, 1, 2), (0, 0, self.num_prefix_tokens, 0))
        return angles.cos(), angles.sin()


class RelativePositionBias(nn.Module):
    """A learnt number per head for each offset (rows, columns) between two patches, added to the scores of every layer
    or of one (BEiT, 2106.08254). If prefix tokens have positions, three more numbers serve prefix to patch, patch to
    prefix and prefix to prefix; otherwise those scores get nothing.

    `forward(grid_size)` -> (1, heads, tokens, tokens)
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        rows, columns = config.grid_size
        self.num_prefix_tokens = config.num_layer_prefix_tokens
        self.grid = nn.Parameter(torch.zeros(2 * rows - 1, 2 * columns - 1, config.num_attention_heads))
        has_prefix = config.num_prefix_positions("relative_bias") > 0
        self.prefix = nn.Parameter(torch.zeros(3, config.num_attention_heads)) if has_prefix else None

    def forward(self, grid_size: tuple[int, int]) -> torch.Tensor:
        rows, columns = grid_size
        table = resample_table(self.grid, (2 * rows - 1, 2 * columns - 1))
        bias = table.flatten(0, 1)[relative_position_index(grid_size, table.device)]  # (N, N, H)
        bias = bias.permute(2, 0, 1)
        if self.num_prefix_tokens:
            bias = self._with_prefix(bias)
        return bias[None].contiguous()

    def _with_prefix(self, bias: torch.Tensor) -> torch.Tensor:
        num_heads, num_patches, _ = bias.shape
        num_prefix = self.num_prefix_tokens
        entries = bias.new_zeros(3, num_heads) if self.prefix is None else self.prefix
        prefix_to_patch, patch_to_prefix, prefix_to_prefix = entries[:, :, None, None]
        top = torch.cat(
            (
                prefix_to_prefix.expand(-1, num_prefix, num_prefix),
                prefix_to_patch.expand(-1, num_prefix, num_patches),
            ),
            dim=2,
        )
        bottom = torch.cat((patch_to_prefix.expand(-1, num_patches, num_prefix), bias), dim=2)
        return torch.cat((top, bottom), dim=1)


def relative_position_index(grid_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """Index of each pair's offset (query minus key) in a table of (2 * rows - 1) x (2 * columns - 1) offsets.

    Returns:
        int64 tensor of shape (patches, patches).
    """
    rows, columns = grid_size
    index = torch.arange(rows * columns, device=device)  # (N,)
    row = index // columns
    column = index - row * columns
    row_offset = row[:, None] - row[None, :] + rows - 1
    column_offset = column[:, None] - column[None, :] + columns - 1
    return row_offset * (2 * columns - 1) + column_offset


ABSOLUTE_POSITIONS = {
    "learned": LearnedPosition,
    "learned_2d": LearnedRowColumnPosition,
    "sincos_1d": SinCosPosition,
    "sincos_2d": SinCosPosition,
}
# One for all layers; the layers have those of the other schemes each for themselves.
ROTARY_POSITIONS = {"rope_2d": RotaryPosition, "rope_axial": StepRotaryPosition}

__all__ = [
    "ABSOLUTE_POSITIONS",
    "ROTARY_POSITIONS",
    "FixedPosition",
    "LearnedPosition",
    "LearnedRowColumnPosition",
    "MixedRotaryPosition",
    "RelativePositionBias",
    "RotaryPosition",
    "SinCosPosition",
    "StepRotaryPosition",
    "fill_meta_tables",
    "relative_position_index",
    "sincos_table",
]
