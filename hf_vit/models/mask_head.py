"""Masks of queries: head, costs and losses.

Shapes: B batch, Q queries, D hidden size, T objects of the largest image, P pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .detr_decoder import FeedForwardHead
from .matcher import Match

# Of the focal loss (1708.02002).
_ALPHA, _GAMMA = 0.25, 2.0


class MaskHead(nn.Module):
    """Masks as dot products of queries with an upsampled feature map (MaskFormer, 2107.06278; EoMT, 2503.19108).

    Args:
        config: gives `d_model` and `mask_upsampling_blocks`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[_upsampling_block(config.d_model) for _ in range(config.mask_upsampling_blocks)])
        self.query_head = FeedForwardHead(
            config.d_model, config.d_model, config.d_model, num_layers=3, starts_at_zero=False
        )
        self.scale = config.d_model**-0.5

    def forward(self, hidden_states: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
        """Return mask logits.

        Args:
            hidden_states: shape (batch, queries, d_model).
            feature_map: shape (batch, d_model, rows, columns).

        Returns:
            Shape (batch, queries, rows * 2 ** blocks, columns * 2 ** blocks).
        """
        pixels = self.blocks(feature_map)
        queries = self.query_head(hidden_states) * self.scale
        return torch.matmul(queries, pixels.flatten(2)).unflatten(2, pixels.shape[2:])


def _upsampling_block(channels: int) -> nn.Module:
    """Double a map's height and width: each pixel becomes four, which a convolution smooths."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        nn.GELU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels),
        nn.GroupNorm(1, channels),
    )


def _focal_terms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal loss of each pixel if it belongs to the object and if not, of the shape of the logits."""
    log_yes, log_no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    yes, no = log_yes.exp(), log_no.exp()
    return -_ALPHA * no**_GAMMA * log_yes, -(1 - _ALPHA) * yes**_GAMMA * log_no


@torch.no_grad()
def mask_costs(pred_masks: torch.Tensor, masks: Sequence[torch.Tensor], config: Any) -> torch.Tensor | None:
    """Return what it costs to give each query the mask of each object of its image, at the resolution of the
    predictions; None where `config.mask_cost` and `config.dice_cost` are zero.

    Args:
        pred_masks: logits, shape (batch, queries, rows, columns).
        masks: of each image, shape (objects, height, width).

    Returns:
        fp32 tensor of shape (batch, queries, objects of the largest image).
    """
    if not (config.mask_cost or config.dice_cost):
        return None
    costs = pred_masks.new_zeros(*pred_masks.shape[:2], max(map(len, masks)), dtype=torch.float32)
    for cost, logits, wanted in zip(costs, pred_masks.float(), masks):
        if len(wanted):
            small = nn.functional.adaptive_avg_pool2d(wanted.float(), logits.shape[1:]).flatten(1)  # (T, pixels)
            yes, no = _focal_terms(logits.flatten(1))
            focal = (torch.matmul(yes, small.T) + torch.matmul(no, 1 - small.T)) / small.shape[1]
            probabilities = logits.flatten(1).sigmoid()
            dice = _dice(torch.matmul(probabilities, small.T), probabilities.sum(1)[:, None], small.sum(1))
            cost[:, : len(wanted)] = config.mask_cost * focal + config.dice_cost * dice
    return costs


def mask_losses(
    pred_masks: torch.Tensor,
    masks: Sequence[torch.Tensor],
    pairs: Match,
    num_boxes: torch.Tensor | float,
) -> dict[str, torch.Tensor]:
    """Return the losses of matched queries' masks at the resolution of the objects' masks (2005.12872).

    Args:
        pred_masks: logits, shape (batch, queries, rows, columns).
        masks: of each image, shape (objects, height, width).
        pairs: with queries of the first group alone.
        num_boxes: by which sums are divided.

    Returns:
        `loss_mask` (focal) and `loss_dice` (1606.04797).
    """
    logits = pred_masks[pairs.images, pairs.queries].float()  # (P, rows, columns)
    if not len(logits):
        nothing = pred_masks.float().sum() * 0.0
        return {"loss_mask": nothing, "loss_dice": nothing}
    wanted = torch.cat([mask for mask in masks if len(mask)])[pairs.objects].float()
    logits = nn.functional.interpolate(logits[:, None], size=wanted.shape[1:], mode="bilinear", align_corners=False)
    logits, wanted = logits.flatten(1), wanted.flatten(1)
    yes, no = _focal_terms(logits)
    probabilities = logits.sigmoid()
    dice = _dice((probabilities * wanted).sum(1), probabilities.sum(1), wanted.sum(1))
    return {
        "loss_mask": (yes * wanted + no * (1 - wanted)).mean(1).sum() / num_boxes,
        "loss_dice": dice.sum() / num_boxes,
    }


def _dice(overlap: torch.Tensor, predicted_area: torch.Tensor, wanted_area: torch.Tensor) -> torch.Tensor:
    return 1 - (2 * overlap + 1) / (predicted_area + wanted_area + 1)


__all__ = ["MaskHead", "mask_costs", "mask_losses"]
