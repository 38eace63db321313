"""Feature mix, queries and decoder of the detection Transformer.

Shapes: B batch, Q queries of all groups, N tokens of the image, D hidden size, H heads, L layers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .box_ops import center_to_corners, refine_boxes
from .cpu_linear import linear
from .layers import drop_path_rates, make_norm
from .transformer_layer import HfTransformerLayer

# The side of the smallest box by which distances are told.
_SMALLEST_BOX = 0.05
# Wavelengths of positions go from this part of the image to twice the image.
_SHORTEST_WAVE = 1 / 32


class Decoded(NamedTuple):
    """Queries and boxes after each layer of the decoder."""

    hidden_states: torch.Tensor  # (L, B, Q, D), normed
    boxes: torch.Tensor  # (L, B, Q, 4)


# Initialisation goes by the class of a layer: transformers passes over modules of custom code that have no weights of
# their own, and so over what holds such layers.
class ZeroLinear(nn.Linear):
    """A linear layer whose weights start at zero."""


class ClassHead(nn.Linear):
    """A linear layer whose outputs start as the logits of a class's prior."""


class FeedForwardHead(nn.Module):
    """Linear layers with ReLU between them: (..., in_size) -> (..., out_size).

    Args:
        in_size, hidden_size, out_size: widths.
        num_layers: at least 2.
        starts_at_zero: whether the last layer's weights do.
    """

    def __init__(self, in_size: int, hidden_size: int, out_size: int, num_layers: int, starts_at_zero: bool):
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(in_size, hidden_size)]
        layers += [nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 2)]
        layers.append((ZeroLinear if starts_at_zero else nn.Linear)(hidden_size, out_size))
        self.layers = nn.ModuleList(layers)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            states = linear(layer, states if i == 0 else states.relu())
        return states


def encode_coordinates(coordinates: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of coordinates in [0, 1], an equal share of the columns for each.

    Args:
        coordinates: shape (..., coordinates).
        size: a multiple of twice the number of coordinates.

    Returns:
        fp32 tensor of shape (..., size).
    """
    num_waves = size // coordinates.shape[-1] // 2
    exponents = torch.linspace(0, 1, num_waves, device=coordinates.device)
    frequencies = math.pi * (2 / _SHORTEST_WAVE) ** exponents
    angles = coordinates.float()[..., None] * frequencies  # (..., coordinates, waves)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def token_centers(grid_size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centres, in parts of the image, of the rows (rows,) and of the columns (columns,) of tokens."""
    rows, columns = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n for n in grid_size)
    return rows, columns


class FeatureMix(nn.Module):
    """The backbone's feature maps, each projected to the decoder's width, weighted and added on the grid of the last:
    a learnt mix of several layers.

    Args:
        channels: of each map.
        config: gives `d_model` and the norm.
    """

    def __init__(self, channels: Sequence[int], config: Any):
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(count, config.d_model) for count in channels])
        self.weights = nn.Parameter(torch.zeros(len(channels)))
        self.norm = make_norm(config)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return tokens (batch, tokens, d_model) and their rows and columns."""
        rows, columns = feature_maps[-1].shape[2:]
        tokens = 0.0
        for projection, weight, features in zip(self.projections, self.weights.softmax(0), feature_maps):
            if features.shape[2:] != (rows, columns):
                features = nn.functional.interpolate(features, (rows, columns), mode="bilinear", align_corners=False)
            tokens = tokens + weight * linear(projection, features.flatten(2).transpose(1, 2))
        return self.norm(tokens), (rows, columns)


class BoxRelativeBias(nn.Module):
    """Bias of the scores of a layer's cross-attention (Plain-DETR, 2308.01904): an MLP sees the signed distances of a
    token's column to the left and right side of a query's box, another those of its row to top and bottom; the bias
    of a token is the sum of both, zero at initialisation.

    Args:
        num_heads: a number for each comes out.
        hidden_size: width of the MLPs.
    """

    def __init__(self, num_heads: int, hidden_size: int):
        super().__init__()
        self.columns = FeedForwardHead(2, hidden_size, num_heads, num_layers=2, starts_at_zero=True)
        self.rows = FeedForwardHead(2, hidden_size, num_heads, num_layers=2, starts_at_zero=True)

    def forward(self, boxes: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """(batch, queries, 4) -> (batch, heads, queries, rows * columns)"""
        corners = center_to_corners(boxes)
        rows, columns = token_centers(grid_size, boxes.device)
        of_columns = self.columns(self._distances(corners[..., 0::2], columns))  # (B, Q, columns, H)
        of_rows = self.rows(self._distances(corners[..., 1::2], rows))  # (B, Q, rows, H)
        bias = of_rows.permute(0, 3, 1, 2)[..., None] + of_columns.permute(0, 3, 1, 2)[..., None, :]
        return bias.flatten(-2)

    def _distances(self, sides: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        """Signed logarithms of distances, which tell near from very near: (B, Q, 2) -> (B, Q, tokens, 2)."""
        distances = sides[:, :, None] - centers[:, None]
        scaled = distances.sign() * (1 + 64 * distances.abs()).log2() / 6
        first: Any = self.columns.layers[0]
        return scaled.to(first.weight.dtype)


def attention_decay(boxes: torch.Tensor, grid_size: tuple[int, int], decay: float) -> torch.Tensor:
    """Return a bias that is zero for tokens in a query's box and falls with the distance from it, so that a query
    looks at its own box before anything is learnt (2101.07448). Without it all queries see the mean of the image at
    first, and stay alike for long.

    Args:
        boxes: shape (batch, queries, 4).
        grid_size: rows and columns of the tokens.
        decay: what a token loses a side of the box, in each direction.

    Returns:
        fp32 tensor of shape (batch, 1, queries, rows * columns).
    """
    corners = center_to_corners(boxes)[:, None]  # (B, 1, Q, 4)
    biases = []
    for first, centers in enumerate(reversed(token_centers(grid_size, boxes.device))):
        start, end = corners[..., first, None], corners[..., first + 2, None]
        outside = (start - centers).clamp(min=0) + (centers - end).clamp(min=0)
        biases.append(-decay * outside / (end - start).clamp(min=_SMALLEST_BOX))
    of_columns, of_rows = biases  # (B, 1, Q, columns), (B, 1, Q, rows)
    return (of_rows[..., None] + of_columns[..., None, :]).flatten(-2)


class Queries(nn.Module):
    """Queries that the decoder starts from. Contents are learnt, one for each query of each group; boxes are those of
    the best tokens, or learnt; without reference boxes contents are zero and positions are learnt (2005.12872).

    Args:
        config: gives `num_queries`, `group_detr`, `two_stage`, `has_reference_boxes`, `num_class_outputs`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_queries, self.num_groups, self.config = config.num_queries, config.group_detr, config
        total = config.num_queries * config.group_detr
        self.content = nn.Embedding(total, config.d_model) if config.has_reference_boxes else None
        self.position = None if config.has_reference_boxes else nn.Embedding(total, config.d_model)
        has_learnt_boxes = config.has_reference_boxes and not config.two_stage
        self.boxes = nn.Embedding(total, 4) if has_learnt_boxes else None
        if config.two_stage:
            self.token_projection = nn.Linear(config.d_model, config.d_model)
            self.token_norm = make_norm(config)
            self.token_class_head = ClassHead(config.d_model, config.num_class_outputs)
            self.token_box_head = FeedForwardHead(config.d_model, config.d_model, 4, num_layers=3, starts_at_zero=True)

    def score_tokens(self, tokens: torch.Tensor, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each token says of an object at its centre: class logits (batch, tokens, class logits) and box
        (batch, tokens, 4)."""
        states = self.token_norm(linear(self.token_projection, tokens))
        rows, columns = token_centers(grid_size, tokens.device)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        sides = torch.full_like(x, self.config.prior_box_size)
        anchors = torch.stack((x, y, sides, sides), dim=-1).flatten(0, 1)  # (N, 4)
        return linear(self.token_class_head, states), refine_boxes(anchors, self.token_box_head(states))

    def best_boxes(self, logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Return the boxes of the tokens whose best class scores highest, without gradients: (batch, tokens, class
        logits), (batch, tokens, 4) -> (batch, min(queries, tokens), 4)."""
        scores = logits.float().softmax(-1)[..., :-1] if self.config.class_loss == "softmax" else logits
        best = scores.amax(-1).topk(min(self.num_queries, scores.shape[1]), dim=1).indices
        return boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()

    def forward(
        self, batch_size: int, chosen_boxes: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]:
        """Return contents (batch, queries, hidden size), reference boxes (batch, queries, 4) or None, positions
        (batch, queries, hidden size) or None, and the number of groups; of `chosen_boxes` (batch, queries, 4) where
        the image gave them.
        """
        num_groups = self.num_groups if self.training else 1
        count = self.num_queries if chosen_boxes is None else chosen_boxes.shape[1]

        def learnt(table: Any) -> torch.Tensor:
            groups = table.weight.unflatten(0, (self.num_groups, self.num_queries))[:num_groups, :count]
            return groups.flatten(0, 1).expand(batch_size, -1, -1)

        if self.position is not None:
            positions = learnt(self.position)
            return torch.zeros_like(positions), None, positions, num_groups
        boxes = learnt(self.boxes).sigmoid() if chosen_boxes is None else chosen_boxes.repeat(1, num_groups, 1)
        return learnt(self.content), boxes, None, num_groups


class HfDetrDecoder(nn.Module):
    """Layers of the Transformer in which queries attend to each other and to the tokens, each followed by a
    prediction of the queries' boxes.

    Args:
        config: the configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.refines = config.with_box_refine
        rates = drop_path_rates(config.drop_path_rate, config.decoder_layers)
        self.layers = nn.ModuleList(
            [HfTransformerLayer(config, "decoder", i, rate, True, is_causal=False) for i, rate in enumerate(rates)]
        )
        self.norm = make_norm(config)
        # The first prediction is the reference box itself.
        has_reference = config.has_reference_boxes
        self.box_head = FeedForwardHead(config.d_model, config.d_model, 4, num_layers=3, starts_at_zero=has_reference)
        self.d_model = config.d_model
        self.attention_decay = config.box_attention_decay
        self.position_head: Any = None
        self.biases: Any = None
        if has_reference:
            self.position_head = FeedForwardHead(
                config.d_model, config.d_model, config.d_model, num_layers=2, starts_at_zero=False
            )
        if config.box_relative_bias:
            heads = config.decoder_attention_heads
            self.biases = nn.ModuleList([BoxRelativeBias(heads, config.d_model // 4) for _ in self.layers])

    def forward(
        self,
        contents: torch.Tensor,
        reference_boxes: torch.Tensor | None,
        positions: torch.Tensor | None,
        num_groups: int,
        tokens: torch.Tensor,
        token_positions: torch.Tensor,
        grid_size: tuple[int, int],
        output_attentions: bool = False,
    ) -> Decoded:
        """
        Args:
            contents: shape (batch, queries, hidden size).
            reference_boxes: shape (batch, queries, 4); without them boxes are predicted from the hidden states alone.
            positions: shape (batch, queries, hidden size), of queries without reference boxes.
            num_groups: groups of queries that do not see each other.
            tokens: shape (batch, tokens, hidden size).
            token_positions: shape (1, tokens, hidden size).
            grid_size: rows and columns of the tokens.
        """
        mask = group_mask(num_groups, contents.shape[1], contents.device) if num_groups > 1 else None
        states = contents
        boxes: Any = reference_boxes
        refined: Any = reference_boxes
        all_states, all_boxes = [], []
        for i, layer in enumerate(self.layers):
            if boxes is not None:
                positions = self.position_head(encode_coordinates(boxes, self.d_model).to(states.dtype))
            states = layer(
                states,
                None,
                tokens,
                self._bias(i, boxes, grid_size, states.dtype),
                output_attentions=output_attentions,
                query_position=positions,
                encoder_position=token_positions,
                attention_mask=mask,
            )
            normed = self.norm(states)
            deltas = self.box_head(normed)
            # What is predicted hangs on this layer's correction and, undetached, on the one before; what the next
            # layer looks from hangs on neither (2203.03605).
            all_boxes.append(deltas.float().sigmoid() if boxes is None else refine_boxes(refined, deltas))
            all_states.append(normed)
            if self.refines:
                refined = refine_boxes(boxes, deltas)
                boxes = refined.detach()
        return Decoded(torch.stack(all_states), torch.stack(all_boxes))

    def _bias(
        self, index: int, boxes: torch.Tensor | None, grid_size: tuple[int, int], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return what is added to the scores of a layer's cross-attention: (batch, heads or 1, queries, tokens)."""
        if boxes is None:
            return None
        learnt = self.biases[index](boxes, grid_size) if self.biases is not None else None
        if not self.attention_decay:
            return learnt
        fixed = attention_decay(boxes, grid_size, self.attention_decay).to(dtype)
        return fixed if learnt is None else learnt + fixed


def group_mask(num_groups: int, num_queries: int, device: torch.device) -> torch.Tensor:
    """Return the mask that keeps groups of queries apart: (1, 1, queries, queries), True where one attends."""
    group = torch.arange(num_queries, device=device) // (num_queries // num_groups)
    return (group[:, None] == group)[None, None]


__all__ = [
    "ClassHead",
    "Decoded",
    "FeatureMix",
    "FeedForwardHead",
    "HfDetrDecoder",
    "Queries",
    "ZeroLinear",
    "encode_coordinates",
    "group_mask",
    "token_centers",
]
