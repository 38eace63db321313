"""Checkpoints and results on disk: whole or absent, and refused where they do not fit."""

import dataclasses
import json
import os
import pickle
import random
import re
import resource
import shutil

import numpy
import pytest
import torch
from accelerate import Accelerator

from hf_vit import train
from hf_vit.files import chunks, digest, write_atomically
from hf_vit.trainer.checkpoint import STATE_FILE, CheckpointArguments, TrainingState
from hf_vit.trainer.checkpointer import Checkpointer, Resumable
from hf_vit.trainer.output_dir import check_room, clear_temporary, move_files, prepare_output_dir, staging_folder

FACTS = {
    "model": {"class": "A", "num_parameters": 3},
    "data": {"train": "f00"},
    "batch": {"global_batch_size": 8},
    "position": {"seed": 1},
}


@pytest.fixture
def checkpointer(tmp_path):
    def make(facts=FACTS, total_limit=1, schedule=False):
        accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(100, 100)
        optimizer = torch.optim.AdamW(model.parameters())
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0) if schedule else None
        resumable = Resumable(*accelerator.prepare(model, optimizer), rates)
        return Checkpointer(accelerator, tmp_path, total_limit, facts, resumable), model

    return make


@pytest.fixture
def small_files_only():
    """A disk that is full after 4 KB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_latest_and_best_are_kept(checkpointer):
    saver, _ = checkpointer(total_limit=2)
    for step in range(1, 6):
        saver.save(TrainingState(step=step, best_step=min(step, 2)))
    assert [path.name for path in saver.saved()] == ["step_0000002", "step_0000004", "step_0000005"]
    assert saver.find("latest").name == "step_0000005"


def test_after_going_back_the_new_checkpoints_are_the_latest(checkpointer):
    saver, _ = checkpointer(total_limit=2)
    for step in (10, 20, 30, 15, 16):
        saver.save(TrainingState(step=step))
    assert [path.name for path in saver.saved()] == ["step_0000015", "step_0000016"]
    assert saver.find("latest").name == "step_0000016"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced(checkpointer, monkeypatch, renames):
    saver, _ = checkpointer()
    saver.save(TrainingState(step=1, loss_sum=1.0))
    replace, remove, done = os.replace, shutil.rmtree, []

    def rename(source, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(replace(source, target))

    def remove_some(folder, **options):
        if folder.name.endswith("-removed"):
            (folder / "model.safetensors").unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", rename)
        patch.setattr(shutil, "rmtree", remove_some)
        saver.save(TrainingState(step=1, loss_sum=2.0))
    again, _ = checkpointer()
    assert [path.name for path in again.saved()] == ["step_0000001"]
    assert again.read(again.find("latest")).loss_sum == (2.0 if renames == 2 else 1.0)
    again.load(again.find("latest"))


def test_state_and_weights_come_back(checkpointer):
    saver, model = checkpointer()
    state = TrainingState(
        step=3, epoch=1, batch=2, loss_sum=0.1 + 0.2, best_metric=1 / 3, best_step=1, epochs=[{"epoch": 1}]
    )
    saved = model.weight.detach().clone()
    saver.save(state)
    model.weight.data.zero_()
    saver.load(saver.find("latest"))
    assert torch.equal(model.weight, saved)
    assert dataclasses.asdict(saver.read(saver.find("latest"))) == dataclasses.asdict(state)


def test_a_full_disk_is_an_error_and_the_old_checkpoint_stays(checkpointer, request):
    saver, model = checkpointer()
    saver.save(TrainingState(step=1))
    saved = model.weight.detach().clone()
    request.getfixturevalue("small_files_only")
    with pytest.raises(Exception, match=r"(?i)file too large|write"):
        saver.save(TrainingState(step=2))
    assert [path.name for path in saver.folder.iterdir()] == ["step_0000001"]
    model.weight.data.zero_()
    saver.load(saver.find("latest"))
    assert torch.equal(model.weight, saved)


@pytest.mark.parametrize(
    ("facts", "batch", "words"),
    [
        ({"model": {"class": "B", "num_parameters": 3}}, 0, ["another model", "class 'A'", "'B'"]),
        ({"data": {"train": "ba4"}}, 0, ["another data", "'f00'", "'ba4'"]),
        ({"batch": {"global_batch_size": 16}}, 0, ["another batch", "global_batch_size 8", "16"]),
        ({"position": {"seed": 2}}, 5, ["another position", "seed 1", "2"]),
        ({"position": {"seed": 2}}, 0, None),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(checkpointer, facts, batch, words):
    checkpointer()[0].save(TrainingState(step=1, batch=batch))
    other, _ = checkpointer({**FACTS, **facts})
    if words is None:
        assert other.read(other.find("latest")).step == 1
        return
    with pytest.raises(ValueError) as refusal:
        other.read(other.find("latest"))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_only_whole_checkpoints_are_found(checkpointer, tmp_path):
    saver, _ = checkpointer()
    assert saver.find("latest") is None
    with pytest.raises(ValueError, match="is not a checkpoint"):
        saver.find(str(tmp_path))
    (saver.folder / "step_0000009").mkdir(parents=True)
    (saver.folder / ".tmp-step_0000010").mkdir()
    assert saver.find("latest") is None
    clear_temporary(tmp_path)
    assert [path.name for path in saver.folder.iterdir()] == ["step_0000009"]


def test_results_replace_old_ones_records_last(tmp_path, monkeypatch):
    for name in ("config.json", "run.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    staging = staging_folder(tmp_path)
    for name in ("run.json", "config.json", "samples.png"):
        (staging / name).write_text("new")
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), replace(source, target)))
    move_files(staging, tmp_path)
    assert order == ["config.json", "samples.png", "run.json"]
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == {"config.json": "new", "run.json": "new", "samples.png": "new", "notes.txt": "old"}


def test_an_atomic_write_that_fails_leaves_the_old_content(tmp_path, small_files_only):
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match="File too large"):
        write_atomically(path, b"new" * 4000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_dir_in_use_needs_a_word(tmp_path):
    prepare_output_dir(tmp_path / "new", overwrite=False, resume=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        prepare_output_dir(tmp_path, overwrite=False, resume=False)
    with pytest.raises(ValueError, match="is a file"):
        prepare_output_dir(tmp_path / "file", overwrite=True, resume=False)
    prepare_output_dir(tmp_path, overwrite=True, resume=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_would_fail_at_the_end_is_said_at_the_start(tmp_path, monkeypatch):
    """A disk without room for checkpoints, and a Python whose texts are not UTF-8: it could not save class names."""
    check_room(tmp_path / "new" / "run", 0)
    with pytest.raises(
        ValueError, match=r"--output_dir .*run': the run's checkpoints need 1,000,000,000,000 MiB, and"
    ):
        check_room(tmp_path / "new" / "run", 10**12 * 2**20)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")  # of LC_ALL=C
    with pytest.raises(ValueError, match="writes text as ascii: set the environment variable PYTHONUTF8=1"):
        train.main(["--output_dir", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_checkpoints_fall_due_by_steps_or_epochs():
    assert [CheckpointArguments(checkpointing_steps="3").due(step) for step in (2, 3, 6)] == [False, True, True]
    assert not CheckpointArguments().due(3)


class Code:
    """A pickle of it writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def seal(folder):
    """Digests of whatever lies in a checkpoint, as a saboteur would bring them along."""
    content = json.loads((folder / STATE_FILE).read_text())
    files = (path for path in folder.iterdir() if path.name != STATE_FILE)
    content["files"] = {path.name: digest(chunks(path)) for path in files}
    (folder / STATE_FILE).write_text(json.dumps(content))


NEW_FILES = ("model.safetensors", "optimizer.safetensors", "schedule.safetensors", "random_states_0.safetensors")
OLD_FILES = ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl")


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", [*NEW_FILES, STATE_FILE])
def test_a_saboteurs_checkpoint_runs_nothing(checkpointer, tmp_path, name, write):
    saver, _ = checkpointer(schedule=True)
    saver.save(TrainingState(step=1))
    path, ran = saver.find("latest"), tmp_path / "ran"
    with (path / name).open("wb") as file:
        write({"model": Code(ran), "step": 1}, file)
    if name != STATE_FILE:
        seal(path)
    with pytest.raises(ValueError, match=re.escape(str(path / name))):
        saver.load(saver.find(str(path)))
    assert not ran.exists()


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", OLD_FILES)
def test_an_old_checkpoint_of_a_saboteur_runs_nothing(checkpointer, tmp_path, name, write):
    saver, _ = checkpointer(schedule=True)
    saver.save(TrainingState(step=1))
    path, ran = saver.find("latest"), tmp_path / "ran"
    for new in NEW_FILES[1:]:
        (path / new).unlink()
    content = json.loads((path / STATE_FILE).read_text())
    del content["files"]
    (path / STATE_FILE).write_text(json.dumps(content))
    torch.save(saver.resumable.optimizer.state_dict(), path / "optimizer.bin")
    torch.save(saver.resumable.schedule.state_dict(), path / "custom_checkpoint_0.pkl")
    states = {"step": 0, "random_state": random.getstate(), "numpy_random_seed": numpy.random.get_state()}
    torch.save({**states, "torch_manual_seed": torch.get_rng_state()}, path / "random_states_0.pkl")
    saver.load(saver.find("latest"))  # as it was
    with (path / name).open("wb") as file:
        write({"state": Code(ran)}, file)
    with pytest.raises(ValueError, match=re.escape(str(path / name))):
        saver.load(saver.find("latest"))
    assert not ran.exists()
    (path / name).unlink()
    if name != "optimizer.bin":
        with pytest.raises(ValueError, match=re.escape(str(path / name))):
            saver.load(saver.find("latest"))


@pytest.mark.parametrize("harm", ["flipped", "emptied", "missing"])
@pytest.mark.parametrize("name", NEW_FILES)
def test_a_damaged_file_is_named_and_its_checkpoint_passed_over(checkpointer, caplog, name, harm):
    saver, _ = checkpointer(total_limit=2, schedule=True)
    for step in (1, 2):
        saver.save(TrainingState(step=step))
    before, last = saver.saved()
    content = bytearray((last / name).read_bytes())
    content[-1] ^= 1
    (last / name).unlink() if harm == "missing" else (last / name).write_bytes(content if harm == "flipped" else b"")
    with caplog.at_level("WARNING"):
        assert saver.find("latest") == before
    (line,) = [each for each in caplog.messages if "passing over" in each]
    assert str(last / name) in line and ("missing" if harm == "missing" else "damaged") in line
    with pytest.raises(ValueError, match=re.escape(str(last / name))):
        saver.find(str(last))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": {}}', b"\xff\xfe"])
def test_a_damaged_record_stops_no_other_checkpoint(checkpointer, caplog, content):
    saver, _ = checkpointer(total_limit=2)
    for step in (1, 2):
        saver.save(TrainingState(step=step))
    before, last = saver.saved()
    (last / STATE_FILE).write_bytes(content)
    assert saver.find("latest") == before
    (line,) = [each for each in caplog.messages if "passing over" in each]
    assert str(last / STATE_FILE) in line
    (before / STATE_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"no checkpoint is whole: .*{re.escape(str(last / STATE_FILE))}"):
        saver.find("latest")


def test_a_file_that_was_added_is_refused(checkpointer):
    saver, _ = checkpointer()
    saver.save(TrainingState(step=1))
    path = saver.find("latest")
    (path / "optimizer.bin").write_bytes(b"")  # by which it would be taken for one of version 0.1.0
    with pytest.raises(ValueError, match=re.escape(f"{path / 'optimizer.bin'} is not of this checkpoint")):
        saver.find("latest")


def test_nothing_that_can_run_code_is_written(checkpointer):
    saver, _ = checkpointer(schedule=True)
    saver.save(TrainingState(step=1))
    assert sorted(path.name for path in saver.find("latest").iterdir()) == sorted([*NEW_FILES, STATE_FILE])
