"""Token labeling (arXiv 2104.10858): a label for each patch, from an annotator, its kept answers, or the data.

Shapes: B batch, N patches, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from hf_vit.config import argument, check_range
from hf_vit.sample_keys import seed_of
from hf_vit.tasks.image_classification.annotator import Annotator


@dataclass
class TokenLabelArguments:
    _argument_group_name: ClassVar[str] = "Token labeling"

    token_label_annotator: str | None = argument(
        None, help="Label each patch by this classifier: any that AutoModelForImageClassification loads."
    )
    token_label_trust_remote_code: bool = argument(False, help="Allow the code that the annotator brings along.")
    token_label_class_order: str = argument(
        "name",
        help="Match the annotator's classes to the data's by their names, or take them in the same order where names "
        "are spelled otherwise.",
        choices=("name", "index"),
    )
    token_label_cache_dir: str | None = argument(
        None, help="Annotate each whole image once and keep its best classes here; crops and flips are followed."
    )
    token_label_top_k: int = argument(5, help="token_label_cache_dir: classes that are kept of each position.")
    token_labeling_weight: float = argument(0.5, help="Weight of the patches' loss beside the image's; 0 is off.")
    mixtoken_alpha: float = argument(
        0.0, help="MixToken: patches of another image, their area from Beta(alpha, alpha); in place of CutMix."
    )

    def __post_init__(self) -> None:
        if self.token_label_cache_dir is not None and self.token_label_annotator is None:
            raise ValueError("--token_label_cache_dir goes with --token_label_annotator")
        check_range("token_label_top_k", self.token_label_top_k, 1)
        for name in ("token_labeling_weight", "mixtoken_alpha"):
            check_range(name, getattr(self, name), 0)


def is_on(arguments: Any) -> bool:
    """Whether a run of image classification labels patches.

    Raises:
        ValueError: arguments that do not go together.
    """
    given, column = arguments.token_labels, arguments.data.token_label_column_name
    if given.token_label_annotator is not None and column is not None:
        raise ValueError("give either --token_label_annotator or --token_label_column_name")
    if given.token_label_annotator is None and column is None:
        if given.mixtoken_alpha:
            raise ValueError("--mixtoken_alpha goes with --token_label_annotator or --token_label_column_name")
        return False
    source = "--token_label_annotator" if column is None else "--token_label_column_name"
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(arguments.augmentation, name):
            raise ValueError(f"--{name} does not go with {source}; --mixtoken_alpha mixes patches")
    if given.mixtoken_alpha and arguments.distillation.teacher:
        raise ValueError("--mixtoken_alpha does not go with --teacher, which sees images whole")
    if (column is not None or given.token_label_cache_dir is not None) and arguments.data.streaming:
        raise ValueError("--streaming goes with no kept labels of patches, but with --token_label_annotator alone")
    if (column is not None or given.token_label_cache_dir is not None) and arguments.augmentation.moves_unseen:
        raise ValueError(
            f"--auto_augment {arguments.augmentation.auto_augment} turns and shifts views, which labels of patches "
            "cannot follow: leave --token_label_cache_dir away, so that each view is annotated, or take three_augment"
        )
    return given.token_labeling_weight > 0


class TokenLabeling:
    """Labels of the patches of each batch, and MixToken.

    Args:
        annotator: labels each view; None where batches bring `token_labels`.
        config: of the model that is trained.
        class_names: the student's.
        seed: the run's.

    Raises:
        ValueError: the model has no patches of one grid, or the annotator sees images of another aspect.
    """

    def __init__(
        self,
        arguments: TokenLabelArguments,
        annotator: Annotator | None,
        config: Any,
        class_names: list[str],
        seed: int,
    ):
        self.alpha, self.weight, self.seed = arguments.mixtoken_alpha, arguments.token_labeling_weight, seed
        self.annotator, self.num_classes, self.grid = annotator, len(class_names), config.grid_size
        self.origin = None if annotator is None else annotator.describe()
        height, width = config.image_shape
        if height % config.patch_shape[0] or width % config.patch_shape[1]:
            raise ValueError(
                f"--image_size must be a multiple of the patch size {config.patch_size} for labels of patches, found "
                f"{height} x {width}"
            )
        if annotator is not None:
            check_aspect(annotator, (height, width))

    @torch.no_grad()
    def labels(self, batch: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
        """Distributions (B, N, C) for the patches of views (B, 3, height, width)."""
        if self.annotator is None:
            return batch["token_labels"].float()
        probabilities = self.annotator.to(pixels.device)(pixels.float()).float().softmax(1)
        if probabilities.shape[2:] != self.grid:
            probabilities = F.interpolate(
                probabilities, self.grid, mode="bilinear", antialias=True, align_corners=False
            )
        return probabilities.flatten(2).transpose(1, 2)

    def mix(
        self, targets: torch.Tensor, token_labels: torch.Tensor, key: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Class indices (B,) and labels of patches (B, N, C), those of a rectangle of patches taken from the image
        before -> targets (B, C) or as they were, labels of patches, and the mask (N,) of the rectangle or None.

        Args:
            key: of the batch's first sample (3,), which decides the rectangle.
        """
        if not self.alpha:
            return targets, token_labels, None
        mask = self._rectangle(seed_of(self.seed, *key.tolist()))
        share = float(mask.float().mean())  # of the image before
        mask = mask.to(targets.device, non_blocking=True)
        one_hot = F.one_hot(targets, self.num_classes).float()
        targets = (1 - share) * one_hot + share * one_hot.roll(1, 0)
        return targets, torch.where(mask[:, None], token_labels.roll(1, 0), token_labels), mask

    def _rectangle(self, seed: int) -> torch.Tensor:
        """As CutMix's (arXiv 1905.04899), on the grid: sides sqrt(1 - lambda) of its own around a random patch, cut at
        the border."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            kept = torch.distributions.Beta(self.alpha, self.alpha).sample()
            centre = [int(torch.randint(side, ())) for side in self.grid]
        sides = [int(side * float(1 - kept) ** 0.5) for side in self.grid]
        mask = torch.zeros(self.grid, dtype=torch.bool)
        spans = [slice(max(at - side // 2, 0), at - side // 2 + side) for at, side in zip(centre, sides)]
        mask[spans[0], spans[1]] = True
        return mask.flatten()


def check_aspect(annotator: Annotator, size: tuple[int, int]) -> None:
    """Raises `ValueError` where the annotator would see images of `size` (height, width) squeezed."""
    height, width = annotator.size
    if height * size[1] != width * size[0]:
        raise ValueError(
            f"--token_label_annotator {annotator.name!r} sees images of {height} x {width}, another aspect than the "
            f"model's {size[0]} x {size[1]}"
        )
