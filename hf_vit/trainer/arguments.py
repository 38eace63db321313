"""The arguments that every run has, whatever its task."""

from __future__ import annotations

from dataclasses import dataclass

from hf_vit.config import Arguments
from hf_vit.source_arguments import SourceArguments
from hf_vit.trainer.authors import AuthorArguments
from hf_vit.trainer.averaging import EmaArguments
from hf_vit.trainer.checkpoint import CheckpointArguments
from hf_vit.trainer.optim import OptimizationArguments
from hf_vit.trainer.publishing import HubArguments
from hf_vit.trainer.stopping import StoppingArguments
from hf_vit.trainer.tracking import TrackingArguments


@dataclass(kw_only=True)
class TrainingArguments(Arguments):
    """Arguments of the loop. A task's `arguments.py` derives its own from it, with a field for each of its groups:
    `data`, of a class derived from `SourceArguments`, `model`, ..."""

    data: SourceArguments
    optimization: OptimizationArguments
    ema: EmaArguments
    checkpoint: CheckpointArguments
    stopping: StoppingArguments
    tracking: TrackingArguments
    hub: HubArguments
    author: AuthorArguments

    def __post_init__(self) -> None:
        if self.checkpoint.eval_steps is not None and self.ema.num_averaged_epochs is not None:
            raise ValueError(
                "--num_averaged_epochs averages the weights that epochs end with: it goes with --eval_strategy epoch"
            )
