"""The loss of a classifier: hard or soft targets, smoothed, against cross entropy or binary cross entropy.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from hf_vit.config import argument, check_range
from hf_vit.models.losses import classification_loss


@dataclass
class LossArguments:
    _argument_group_name: ClassVar[str] = "Loss"

    loss_type: str = argument(
        "cross_entropy",
        help="bce takes each class as a yes-or-no question, averaged over classes (DeiT III).",
        choices=("cross_entropy", "bce"),
    )
    label_smoothing_factor: float = argument(0.0, help="Part of each target that is spread over all classes.")

    def __post_init__(self) -> None:
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0, 1)


class ClassificationLoss:
    """`(logits (B, C), targets) -> scalar`; targets are class indices (B,) or distributions (B, C).

    Smoothing is linear, so it gives the same targets before and after MixUp.
    """

    def __init__(self, arguments: LossArguments):
        self.loss_type = arguments.loss_type
        self.smoothing = arguments.label_smoothing_factor

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        num_classes = logits.shape[-1]
        if targets.ndim == 1 and (self.smoothing or self.loss_type == "bce"):
            targets = F.one_hot(targets, num_classes).float()
        if self.smoothing:
            targets = (1 - self.smoothing) * targets + self.smoothing / num_classes
        if self.loss_type == "bce":
            return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
        return classification_loss(logits, targets)
