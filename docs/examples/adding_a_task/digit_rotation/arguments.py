"""The arguments of digit rotation: a field of `RotationArguments` for each group, beside those of every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import Options, argument, check_range
from hf_vit.source_arguments import SourceArguments
from hf_vit.trainer.arguments import TrainingArguments


@dataclass
class RotationDataArguments(SourceArguments):
    max_angle: float = argument(90.0, help="Digits are turned by up to so many degrees, either way.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("max_angle", self.max_angle, 0, 180, open_low=True)


@dataclass
class RotationModelArguments:
    _argument_group_name: ClassVar[str] = "Model"

    config_overrides: Options = argument(Options, help="Fields of the model's config: a=b,c=d or JSON.")


@dataclass(kw_only=True)
class RotationArguments(TrainingArguments):
    data: RotationDataArguments
    model: RotationModelArguments
