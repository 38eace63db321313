"""SIGTERM, SIGINT and SIGHUP end a run after the step that is under way, with everything saved."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
from accelerate import Accelerator

HANGUP = getattr(signal, "SIGHUP", None)  # which Windows has not
SIGNALS = tuple(number for number in (signal.SIGTERM, signal.SIGINT, HANGUP) if number is not None)


def leave_process_group(worker_id: int) -> None:
    """For loader workers: a signal to the whole group (Ctrl-C, torchrun) is the main process's business."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


class Interruption:
    """Within the context, the first signal is noted; a second one of the same kind acts as it always does. A hangup
    that is ignored, as under nohup, stays so."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0  # by this process

    def __enter__(self) -> Interruption:
        noted = [number for number in SIGNALS if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in noted}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[number])
        if number == HANGUP:  # writing to a terminal that is gone would end the run before it is saved
            nothing = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._terminals:
                os.dup2(nothing, descriptor)
            os.close(nothing)

    def signal(self) -> int:
        """The signal that any process received, 0 for none; all processes call it at the same step."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())
