"""Teachers: any image classifiers, each shown the student's view as its own processor wants it.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torchvision.transforms.v2 import functional as F
from transformers import AutoModelForImageClassification
from transformers.image_utils import pil_torch_interpolation_mapping
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit.config import argument, check_range
from hf_vit.files import check_model_source
from hf_vit.vision.processors import InputFormat

# A processor's steps that a view needs: either it has been through them (crop, RGB), or `InputFormat` tells them.
STEPS = {
    "do_resize",
    "do_center_crop",
    "do_convert_rgb",
    "do_rescale",
    "do_normalize",
    "do_flip_channel_order",
    "do_reduce_labels",  # of segmentation maps alone
}


@dataclass
class DistillationArguments:
    _argument_group_name: ClassVar[str] = "Distillation"

    teacher: list[str] | None = argument(
        None, help="Teachers: any that AutoModelForImageClassification loads; several form an ensemble."
    )
    teacher_weights: list[float] | None = argument(None, help="Weights of the teachers' probabilities; equal ones.")
    teacher_trust_remote_code: bool = argument(False, help="Allow the code that a teacher brings along.")
    teacher_class_order: str = argument(
        "name",
        help="Match the teachers' classes to the data's by their names, or take them in the same order where names "
        "are spelled otherwise.",
        choices=("name", "index"),
    )
    teacher_cache_dir: str | None = argument(
        None, help="Compute the teachers' logits once and keep them here; for views without anything random."
    )
    distillation_type: str = argument(
        "soft", help="KL divergence, or the teacher's decision.", choices=("soft", "hard")
    )
    distillation_alpha: float = argument(0.5, help="Share of the teacher in the loss; the rest is the labels'.")
    distillation_temperature: float = argument(3.0, help="Temperature of soft distillation.")

    def __post_init__(self) -> None:
        if self.teacher_cache_dir is not None and not self.teacher:
            raise ValueError("--teacher_cache_dir goes with --teacher")
        check_range("distillation_alpha", self.distillation_alpha, 0, 1)
        check_range("distillation_temperature", self.distillation_temperature, 0, open_low=True)
        if self.teacher_weights is not None:
            if len(self.teacher_weights) != len(self.teacher or ()):
                raise ValueError(
                    f"--teacher_weights takes one number for each teacher, found {len(self.teacher_weights)} for "
                    f"{len(self.teacher or ())}"
                )
            for weight in self.teacher_weights:
                check_range("teacher_weights", weight, 0, open_low=True)


class Teacher(nn.Module):
    """One frozen classifier on the student's views.

    Args:
        name: a model of the Hub or a folder.
        class_names: the student's, in its order.
        class_order: "name": the teacher's classes bear the same names; "index": they come in the same order.
        flags: the arguments that name the model and its class order, for messages.

    Raises:
        ValueError: the teacher's classes are not the student's, or its processor takes steps that are not known here.
    """

    mean: torch.Tensor
    std: torch.Tensor
    order: torch.Tensor

    def __init__(
        self,
        name: str,
        class_names: list[str],
        *,
        class_order: str = "name",
        trust_remote_code: bool = False,
        flags: tuple[str, str] = ("--teacher", "--teacher_class_order"),
    ):
        super().__init__()
        self.name = name
        check_model_source(flags[0], name)
        options = {"trust_remote_code": trust_remote_code}
        self.model = AutoModelForImageClassification.from_pretrained(name, **options).eval().requires_grad_(False)
        problem_type = getattr(self.model.config, "problem_type", None)
        if problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"{flags[0]} {name!r} has problem_type {problem_type!r}: its classes must exclude each other"
            )
        processor = AutoImageProcessor.from_pretrained(name, **options)
        _check_steps(f"{flags[0]} {name!r}", processor.to_dict())
        form = InputFormat.of(processor)
        self.register_buffer("mean", 255 * torch.tensor(form.mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(form.std)[:, None, None], persistent=False)
        self.size = form.size
        self.interpolation = pil_torch_interpolation_mapping[form.resample]
        self.flips_channels = form.do_flip_channel_order
        find_order = _order_of_names if class_order == "name" else _same_order
        order = find_order((f"{flags[0]} {name!r}", flags[1]), self.model.config.id2label, class_names)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) in 0..255 to logits (B, C) in the student's order of classes."""
        return self.model(pixel_values=self.seen(pixels)).logits[:, self.order]

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) in 0..255 to the pixel values that the model takes."""
        if pixels.shape[-2:] != self.size:
            pixels = F.resize(pixels, list(self.size), interpolation=self.interpolation, antialias=True)
        if self.flips_channels:
            pixels = pixels.flip(1)
        return (pixels - self.mean) / self.std

    def describe(self) -> dict[str, str | None]:
        """Name and, of a model from the Hub, revision."""
        return {"name": self.name, "revision": getattr(self.model.config, "_commit_hash", None)}


def _check_steps(teacher: str, fields: dict[str, Any]) -> None:
    """Raises `ValueError` where a processor does to an image what a view cannot be given."""
    if fields.get("do_resize", True) is False:
        raise ValueError(f"{teacher}: its image processor has do_resize=False, so no size to resize views to")
    for field, value in fields.items():
        if field.startswith("do_") and value and field not in STEPS:
            raise ValueError(f"{teacher}: its image processor has {field}={value}, which views do not follow")


def _same_order(teacher: tuple[str, str], id2label: dict[int, str], class_names: list[str]) -> list[int]:
    if len(id2label) != len(class_names):
        raise ValueError(f"{teacher[0]} has {len(id2label)} classes, the data {len(class_names)}")
    return list(range(len(class_names)))


def _order_of_names(teacher: tuple[str, str], id2label: dict[int, str], class_names: list[str]) -> list[int]:
    name, order_flag = teacher
    index_of = {label: int(index) for index, label in id2label.items()}
    if len(index_of) < len(id2label):
        raise ValueError(f"{name} has classes of the same name; {order_flag} index")
    missing = [label for label in class_names if label not in index_of]
    surplus = [label for label in index_of if label not in class_names]
    if missing or surplus:
        lacks = f" lacks {', '.join(missing[:10])}" if missing else ""
        has = f" knows {', '.join(surplus[:10])}, which the data does not" if surplus else ""
        raise ValueError(
            f"{name} has other classes than the data: it{lacks}{' and' * bool(lacks and has)}{has}; "
            f"{order_flag} index where only the names differ"
        )
    return [index_of[label] for label in class_names]


class TeacherEnsemble(nn.Module):
    """The weighted mean of the teachers' probabilities, as logits; with one teacher, its own logits."""

    log_weights: torch.Tensor

    def __init__(self, arguments: DistillationArguments, class_names: list[str]):
        super().__init__()
        options: dict[str, Any] = {
            "class_order": arguments.teacher_class_order,
            "trust_remote_code": arguments.teacher_trust_remote_code,
        }
        self.teachers = nn.ModuleList(Teacher(name, class_names, **options) for name in arguments.teacher or ())
        weights = torch.tensor(arguments.teacher_weights or [1.0] * len(self.teachers))
        self.register_buffer("log_weights", (weights / weights.sum()).log(), persistent=False)

    def describe(self) -> list[dict[str, str | None]]:
        """Name and, of a teacher from the Hub, revision of each."""
        teachers: Any = self.teachers
        return [each.describe() for each in teachers]

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) in 0..255 to logits (B, C), fp32."""
        logits = [teacher(pixels).float() for teacher in self.teachers]
        if len(logits) == 1:
            return logits[0]
        log_probabilities = torch.stack([each.log_softmax(-1) for each in logits])  # (teachers, B, C)
        return (log_probabilities + self.log_weights[:, None, None]).logsumexp(0)
