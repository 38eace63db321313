"""Hangups as a shell sends them, and one run at a time in a folder."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import training_runs

from hf_vit import train
from hf_vit.trainer import output_dir
from hf_vit.trainer.loop import TrainingLoop
from hf_vit.trainer.signals import Interruption

ALONE = SimpleNamespace(num_processes=1)


@pytest.fixture
def hangup():
    """Sets what a hangup does, for one test."""
    previous = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(("handler", "noted"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)])
def test_a_hangup_ends_a_run_unless_it_is_ignored_as_by_nohup(hangup, handler, noted):
    hangup(handler)
    with Interruption(ALONE) as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal() == noted
    assert signal.getsignal(signal.SIGHUP) == handler


def forked(body):
    """A copy of this process that runs `body(ready)` and ends with what it returns, or with 1 where it raises; it is
    returned when `ready()` was called there, or it has ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = body(lambda: os.write(writer, b"x"))
        finally:
            os._exit(status)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_after_a_hangup_a_run_still_writes_though_its_terminal_is_gone():
    ours, terminal = os.openpty()

    def run(ready):
        os.close(ours)
        os.dup2(terminal, 1)
        os.close(terminal)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Interruption(ALONE) as interruption:
            ready()
            while not interruption.signal():
                time.sleep(0.01)
            os.write(1, b"the checkpoint is saved")
        return 0

    child = forked(run)
    os.close(terminal)
    os.close(ours)
    os.kill(child, signal.SIGHUP)
    assert ended(child) == 0


def holds(folder):
    """A process that has locked the folder, and lives until it is killed."""

    def hold(ready):
        output_dir.lock(folder)
        ready()
        while True:
            signal.pause()

    return forked(hold)


def is_free(folder):
    """Whether another process can lock the folder; it ends at once."""

    def take(ready):
        output_dir.lock(folder)
        return 0

    return ended(forked(take)) == 0


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended_however(tmp_path):
    holder = holds(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"--output_dir '{tmp_path}' is in use by another run: wait"):
            train.main([*training_runs.TINY, "--overwrite_output_dir", "--output_dir", str(tmp_path)])
        assert not list(tmp_path.iterdir()) and not is_free(tmp_path)
    finally:
        os.kill(holder, signal.SIGKILL)
        ended(holder)
    assert is_free(tmp_path)


def test_a_folder_is_free_when_a_run_in_this_process_is_over(tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr(TrainingLoop, "train", lambda loop: during.append(is_free(loop.output_dir)))
    train.main([*training_runs.TINY, "--overwrite_output_dir", "--output_dir", str(tmp_path)])
    assert during == [False] and is_free(tmp_path)
