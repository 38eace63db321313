"""The loss of a classifier: hard or soft targets, smoothed, against one of several losses, classes weighted.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from hf_vit.config import argument, check_range
from hf_vit.models.losses import classification_loss

LOGIT_ADJUSTED = "logit_adjusted"
MULTI_LABEL = "multi_label_classification"


@dataclass
class LossArguments:
    _argument_group_name: ClassVar[str] = "Loss"

    loss_type: str = argument(
        "cross_entropy",
        help="bce takes each class as a yes-or-no question, averaged over classes (DeiT III); focal counts what is "
        "already known less (1708.02002); logit_adjusted adds the log of each class's share of the training images to "
        "the logits, for balanced accuracy (2007.07314). Of several labels an image: bce, focal, or asymmetric, which "
        "counts labels that are absent less (2009.14119); cross_entropy is bce there.",
        choices=("cross_entropy", "bce", "focal", LOGIT_ADJUSTED, "asymmetric"),
    )
    problem_type: str | None = argument(
        None,
        help="multi_label_classification: images have several labels, or none; else each has one.",
        choices=("single_label_classification", MULTI_LABEL),
    )
    tune_label_thresholds: bool = argument(
        False,
        help="multi_label_classification: store the probability from which on each label is given in the config, that "
        "of the best F1 on the validation split; else it is 0.5.",
    )
    label_smoothing_factor: float = argument(0.0, help="Part of each target that is spread over all classes.")
    focal_gamma: float = argument(2.0, help="focal: the power of the part that is not known yet; 0 is cross entropy.")
    logit_adjustment_tau: float = argument(1.0, help="logit_adjusted: the factor of the logs of the classes' shares.")

    def __post_init__(self) -> None:
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0, 1)
        check_range("focal_gamma", self.focal_gamma, 0)
        check_range("logit_adjustment_tau", self.logit_adjustment_tau, 0, open_low=True)
        if self.is_multi_label and self.loss_type == LOGIT_ADJUSTED:
            raise ValueError(f"--loss_type logit_adjusted is of classes that exclude each other, not of {MULTI_LABEL}")
        for name, wanted in (
            ("--loss_type asymmetric", self.loss_type == "asymmetric"),
            ("--tune_label_thresholds", self.tune_label_thresholds),
        ):
            if wanted and not self.is_multi_label:
                raise ValueError(f"{name} goes with --problem_type {MULTI_LABEL}")

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL


class ClassificationLoss:
    """`(logits (B, C), targets) -> scalar`; targets are class indices (B,) or distributions (B, C).

    Smoothing is linear, so it gives the same targets before and after MixUp.

    Args:
        class_weights: (C,): each target counts by its class's weight; of cross entropies the mean is divided by the
            mean weight of the targets, as torch does it.
        class_counts: training images of each class (C,), all > 0, which logit_adjusted takes for their shares.
    """

    def __init__(
        self,
        arguments: LossArguments,
        class_weights: Sequence[float] | None = None,
        class_counts: Sequence[int] | None = None,
    ):
        self.loss_type = arguments.loss_type
        self.smoothing = arguments.label_smoothing_factor
        self.gamma = arguments.focal_gamma
        self.weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
        self.shift = None
        if self.loss_type == LOGIT_ADJUSTED:
            if class_counts is None:
                raise ValueError("--loss_type logit_adjusted needs the number of training images of each class")
            counts = torch.tensor(class_counts, dtype=torch.float)
            self.shift = arguments.logit_adjustment_tau * (counts / counts.sum()).log()

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        num_classes = logits.shape[-1]
        needs_distribution = self.smoothing or self.loss_type in ("bce", "focal") or self.weights is not None
        if targets.ndim == 1 and needs_distribution:
            targets = F.one_hot(targets, num_classes).float()
        if self.smoothing:
            targets = (1 - self.smoothing) * targets + self.smoothing / num_classes
        weights = self.weights = None if self.weights is None else self.weights.to(logits.device)
        if self.loss_type == "bce":
            return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), weight=weights)
        if self.shift is not None:
            self.shift = self.shift.to(logits.device)
            logits = logits.float() + self.shift
        if self.loss_type != "focal" and weights is None:
            return classification_loss(logits, targets)
        targets = targets.float() if weights is None else targets * weights
        log_probabilities = logits.float().log_softmax(-1)
        if self.loss_type == "focal":
            unknown = (-torch.expm1(log_probabilities)).clamp(min=0)
            return -(targets * unknown**self.gamma * log_probabilities).sum(-1).mean()
        return -(targets * log_probabilities).sum() / targets.sum()
