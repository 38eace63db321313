"""Interrupted runs end where uninterrupted ones do, to the bit; nothing on the way can spoil what was saved."""

import json
import os
import random
import re
import signal
import time
from functools import partial

import pytest
import torch
import training_runs
from safetensors.torch import load_file

from hf_vit import train
from hf_vit.trainer.checkpoint import STATE_FILE
from hf_vit.trainer.output_dir import CHECKPOINTS

# Every source of randomness and state at once: dropout, drop path, MixUp, CutMix, accumulation, averaged weights,
# repeated augmentation, clipping, a teacher.
RECIPE = """
dataset_name: sklearn_digits
train_val_split: 0
max_train_samples: 150
max_eval_samples: 50
card_num_samples: 0
image_size: [8]
config_overrides: {hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16, patch_size: 4,
                   hidden_dropout_prob: 0.1, drop_path_rate: 0.1, use_distillation_token: true}
affine_degrees: 10
mixup_alpha: 0.8
cutmix_alpha: 1.0
label_smoothing_factor: 0.1
repeated_augmentation: 2
num_train_epochs: 4
per_device_train_batch_size: 8
gradient_accumulation_steps: 3
ema_decay: 0.9
warmup_ratio: 0.2
checkpointing_steps: 4
teacher: [{teacher}]
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_run):
    recipe = tmp_path_factory.mktemp("recipe") / "everything.yaml"
    recipe.write_text(RECIPE.replace("{teacher}", str(tiny_run)))
    return partial(training_runs.start, "--recipe", recipe, "--output_dir")


@pytest.fixture(scope="module")
def finish(start):
    def finish(folder, *argv):
        process = start(folder, *argv)
        process.join()
        assert process.exitcode == 0
        return (folder / "model.safetensors").read_bytes()

    return finish


@pytest.fixture(scope="module")
def uninterrupted(finish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return finish(folder), folder


def wait_for(condition, process):
    while process.is_alive() and not condition():
        time.sleep(0.01)
    assert process.is_alive()


def step_of(folder):
    states = [json.loads(path.read_text())["state"] for path in folder.glob(f"{CHECKPOINTS}/step_*/{STATE_FILE}")]
    return max((state["step"] for state in states), default=0)


@pytest.mark.parametrize(
    ("number", "loading"),
    [
        (signal.SIGTERM, ["--dataloader_num_workers=0"]),
        (signal.SIGHUP, ["--dataloader_num_workers=0"]),
        (signal.SIGINT, ["--dataloader_num_workers=2", "--dataloader_prefetch_factor=3"]),
    ],
)
def test_a_signal_saves_within_the_epoch_and_resuming_ends_with_the_same_bits(
    start, finish, uninterrupted, tmp_path, number, loading
):
    folder = tmp_path / "run"
    process = start(folder, *loading, "--checkpointing_steps=1000", slow_down=0.05)
    wait_for(lambda: step_of(folder) > 0, process)  # the checkpoint of the first epoch's end
    time.sleep(0.3)
    os.killpg(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    state = json.loads(max(folder.glob(f"{CHECKPOINTS}/step_*/{STATE_FILE}")).read_text())["state"]
    assert state["batch"] > 0, "the signal was to come within an epoch"
    assert finish(folder, "--resume_from_checkpoint") == uninterrupted[0]
    resumed, whole = (json.loads((path / "run.json").read_text()) for path in (folder, uninterrupted[1]))
    assert resumed["status"] == "finished" and resumed["result"] == whole["result"]
    assert [row["train_loss"] for row in resumed["epochs"]] == [row["train_loss"] for row in whole["epochs"]]


def test_a_signal_while_an_epoch_is_evaluated_loses_nothing_of_it(start, finish, tmp_path):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    arguments = ("--checkpointing_steps=epoch", "--num_train_epochs=1")
    for evaluation in range(2):  # that of the epoch, and the last one
        mark.unlink(missing_ok=True)
        process = start(folder, *arguments, "--resume_from_checkpoint", environment={"EVALUATION_MARK": str(mark)})
        wait_for(mark.exists, process)
        if evaluation == 1:
            mark.unlink()
            wait_for(mark.exists, process)
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 128 + signal.SIGTERM
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "interrupted" and len(record["epochs"]) == evaluation
        assert step_of(folder) == 13
    whole = tmp_path / "whole"
    assert finish(folder, *arguments, "--resume_from_checkpoint") == finish(whole, *arguments)
    resumed, whole = (json.loads((path / "run.json").read_text()) for path in (folder, whole))
    assert resumed["result"] == whole["result"]
    assert [row["train_loss"] for row in resumed["epochs"]] == [row["train_loss"] for row in whole["epochs"]]


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_minus_nine_at_random_moments(start, finish, uninterrupted, tmp_path, kills):
    folder, moments = tmp_path / "run", random.Random(0)
    for _ in range(kills):
        process = start(folder, "--resume_from_checkpoint", "--checkpointing_steps=1", slow_down=0.5 / kills)
        reached = step_of(folder)
        wait_for(lambda reached=reached: step_of(folder) > reached, process)
        time.sleep(moments.uniform(0, 2.5 / kills))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert finish(folder, "--resume_from_checkpoint") == uninterrupted[0]


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(start, finish, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "--learning_rate=1e30", "--max_grad_norm=0", "--checkpointing_steps=1")
    process.join()
    assert process.exitcode not in (0, None)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    words = re.fullmatch(
        r"FloatingPointError: .*step (\d+): loss .*learning rate (\S+), samples \[(.*)\]; .*", record["error"]
    )
    assert step_of(folder) == int(words[1]) - 1 > 0
    assert float(words[2]) > 1e28
    assert 1 < len(words[3].split(",")) <= 24 and all(0 <= int(index) < 150 for index in words[3].split(","))
    assert not (folder / "model.safetensors").exists()
    finish(folder, "--resume_from_checkpoint", f"--max_train_steps={step_of(folder)}")


def test_the_best_weights_are_taken_when_asked_for(tmp_path):
    folder = tmp_path / "run"
    arguments = ["--train_val_split=0.3", "--load_best_model_at_end", "--ema_decay=none", "--learning_rate=0.05"]
    training_runs.finish(*training_runs.TINY, *arguments, "--num_train_epochs=6", "--output_dir", folder)
    record = json.loads((folder / "run.json").read_text())
    best = max(record["epochs"], key=lambda row: row["metrics"]["accuracy"])
    state = json.loads(max(folder.glob(f"{CHECKPOINTS}/step_*/{STATE_FILE}")).read_text())["state"]
    assert state["best_step"] == best["step"]
    weights = load_file(folder / CHECKPOINTS / f"step_{best['step']:07d}" / "model.safetensors")
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_the_best_weights_are_not_chosen_on_the_test_split(tmp_path):
    with pytest.raises(ValueError, match="needs a validation split"):
        train.main([*training_runs.TINY, "--load_best_model_at_end", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
