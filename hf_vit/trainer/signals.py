"""SIGTERM and SIGINT end a run after the step that is under way, with everything saved."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_process_group(worker_id: int) -> None:
    """For loader workers: a signal to the whole group (Ctrl-C, torchrun) is the main process's business."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


class Interruption:
    """Within the context, the first signal is noted; a second one of the same kind acts as it always does."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0  # by this process

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[number])

    def signal(self) -> int:
        """The signal that any process received, 0 for none; all processes call it at the same step."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())
