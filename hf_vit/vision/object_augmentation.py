"""Random views of images with objects. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import argument, check_range


@dataclass
class ObjectAugmentationArguments:
    _argument_group_name: ClassVar[str] = "Augmentation"

    horizontal_flip_prob: float = argument(0.5, help="Probability of a horizontal flip.")
    vertical_flip_prob: float = argument(0.0, help="Probability of a vertical flip.")
    scale_jitter: list[float] = argument(
        lambda: [1.0, 1.0],
        help="Smallest and largest zoom; what leaves the canvas is cut off, with the objects whose centres it holds.",
    )
    photometric_distort_prob: float = argument(0.0, help="Probability of other brightness, contrast and colours.")
    canvas_scale: list[float] = argument(
        lambda: [1.0, 1.0], help="Multi-scale training: smallest and largest canvas, drawn for each batch."
    )

    def __post_init__(self) -> None:
        for name in ("horizontal_flip_prob", "vertical_flip_prob", "photometric_distort_prob"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("scale_jitter", "canvas_scale"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0.1 <= bounds[0] <= bounds[1] <= 4:
                raise ValueError(f"--{name} takes two rising numbers in [0.1, 4], found {bounds}")
