"""When a run stops before its last step: no better for a while, or its time is up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_vit.config import argument, check_range
from hf_vit.trainer.checkpoint import TrainingState
from hf_vit.words import counted

_TIME = re.compile(r"(?:(\d+):)?(\d+):([0-5]\d):([0-5]\d)")  # days, hours, minutes, seconds


@dataclass
class StoppingArguments:
    _argument_group_name: ClassVar[str] = "Stopping"

    early_stopping_patience: int | None = argument(
        None, help="Stop after so many evaluations in a row of which none was the best; needs a validation split."
    )
    max_time: str | None = argument(
        None,
        help="Stop after so long a time of training, earlier parts of a resumed run included, then evaluate and save: "
        "seconds, or [days:]hours:minutes:seconds.",
    )

    def __post_init__(self) -> None:
        check_range("early_stopping_patience", self.early_stopping_patience, 1)
        self.max_seconds = None if self.max_time is None else _seconds(self.max_time)

    def check(self, split: str) -> None:
        """Raise `ValueError` where the split that is followed must not decide."""
        if self.early_stopping_patience is not None and split == "test":
            raise ValueError(
                "--early_stopping_patience needs a validation split (--train_val_split): a test split decides nothing"
            )

    def time_is_up(self, accelerator: Accelerator, seconds: float) -> bool:
        """Whether training has lasted for the time that it is given; all processes get the same answer."""
        if self.max_seconds is None:
            return False
        is_up = seconds >= self.max_seconds
        return any(gather_object([is_up])) if accelerator.num_processes > 1 else is_up

    def ends_epoch(self, accelerator: Accelerator, state: TrainingState, seconds: float) -> bool:
        """Whether an epoch is cut short after a step.

        Args:
            seconds: of training, since those that the state counts.
        """
        return self.time_is_up(accelerator, state.training_seconds + seconds) or self.reason(state) is not None

    def reason(self, state: TrainingState) -> str | None:
        """A sentence where an evaluated run is to stop, else None. It depends on the state alone: a resumed run stops
        where an uninterrupted one does."""
        if not state.is_evaluated or not state.epochs:
            return None
        if self.max_seconds is not None and state.training_seconds >= self.max_seconds:
            return f"the time is up after {state.training_seconds:.0f} s of training (--max_time {self.max_time})"
        patience = self.early_stopping_patience
        since = [row for row in state.epochs if row["step"] > (state.best_step or 0)]
        if patience is not None and len(since) >= patience:
            return f"no better for {counted(len(since), 'evaluations')} (--early_stopping_patience {patience})"
        return None


def _seconds(text: str) -> float:
    if found := _TIME.fullmatch(text):
        days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--max_time takes seconds > 0 or [days:]hours:minutes:seconds, found {text!r}")
    return value
