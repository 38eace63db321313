"""Several processes train as one does, and evaluation counts each sample once."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import TINY, finish, start_all

from hf_vit.train import main
from hf_vit.trainer.sampler import EpochBatchSampler

ROOT = Path(__file__).parents[2]
ARGUMENTS = [*TINY, "--ema_decay=0.9", "--max_eval_samples=37"]


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    finish(*ARGUMENTS, "--per_device_train_batch_size=16", "--output_dir", folder)
    return record_of(folder)


def assert_same_curve(record, other):
    for name in ("train_loss", "step", "learning_rate"):
        assert [row[name] for row in record["epochs"]] == pytest.approx(
            [row[name] for row in other["epochs"]], abs=1e-5
        )
    for row, expected in zip(record["epochs"], other["epochs"]):
        assert row["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], abs=1e-5)


def test_two_processes_under_torchrun_have_the_curve_of_one(alone, tmp_path):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
    ]
    # 37 samples in batches of 5 leave an uneven rest on the second process.
    sizes = [
        "--per_device_train_batch_size=8",
        "--per_device_eval_batch_size=5",
        "--output_dir",
        str(tmp_path / "both"),
    ]
    process = subprocess.run(
        [sys.executable, *launcher, "training/train.py", *ARGUMENTS, *sizes],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    record = record_of(tmp_path / "both")
    assert record["hardware"]["num_processes"] == 2
    assert_same_curve(record, alone)
    ours, theirs = (each["result"]["metrics"]["confusion_matrix"] for each in (record, alone))
    assert record["result"]["num_examples"] == sum(map(sum, ours)) == 37
    assert [sum(row) for row in ours] == [sum(row) for row in theirs]


def test_accumulated_batches_have_the_curve_of_one_large_batch(alone, tmp_path):
    sizes = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=4"]
    finish(*ARGUMENTS, *sizes, "--output_dir", tmp_path / "run")
    assert_same_curve(record_of(tmp_path / "run"), alone)


@pytest.mark.parametrize("num_samples", [1, 3, 8])
def test_each_sample_is_evaluated_once_however_few(tmp_path, num_samples):
    sizes = [f"--max_eval_samples={num_samples}", "--per_device_eval_batch_size=4", "--max_train_steps=1"]
    finish(*TINY, *sizes, "--output_dir", tmp_path / "run", num_processes=2)
    result = record_of(tmp_path / "run")["result"]
    assert result["num_examples"] == sum(map(sum, result["metrics"]["confusion_matrix"])) == num_samples


def test_the_samples_of_a_non_finite_loss_are_named_whichever_process_had_them(tmp_path):
    arguments = [*TINY, "--per_device_train_batch_size=8", "--output_dir", tmp_path / "run"]
    poison = {"POISONED_RANK": "1"}
    for process in start_all(*arguments, num_processes=2, environment=poison):
        process.join()
        assert process.exitcode == 1
    error = record_of(tmp_path / "run")["error"]
    sampler = EpochBatchSampler(100, 8, batches_per_step=2, seed=42)
    _, theirs = (sorted(key.index for key in batch) for batch in itertools.islice(sampler, 2))
    assert f"samples {theirs}" in error


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    arguments = [*TINY, "--per_device_train_batch_size=8", "--max_eval_samples=8", "--output_dir"]
    finish(*arguments, whole, num_processes=2)
    processes = start_all(*arguments, folder, "--checkpointing_steps=1", num_processes=2, slow_down=0.1)
    while all(process.is_alive() for process in processes) and not list(folder.glob("checkpoints/step_*")):
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)  # not the one that saves
    for process in processes:
        process.join()
        assert process.exitcode == 128 + signal.SIGTERM
    record = record_of(folder)
    assert record["status"] == "interrupted" and len(record["epochs"]) < 3
    finish(*arguments, folder, "--resume_from_checkpoint", num_processes=2)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "HfViTLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def test_shared_out_weights_have_the_curve_of_one_process_and_resume(tmp_path, monkeypatch):
    schedule = ["--lr_scheduler_type=constant", "--warmup_ratio=0"]  # which does not depend on where a run ends
    arguments = [*TINY, *schedule, "--max_eval_samples=37", "--ema_decay=none"]
    finish(*arguments, "--per_device_train_batch_size=16", "--output_dir", tmp_path / "alone")
    sizes = ["--per_device_train_batch_size=8", "--per_device_eval_batch_size=5", "--output_dir", tmp_path / "shared"]
    finish(*arguments, *sizes, "--max_train_steps=9", num_processes=2, environment=FSDP)
    resume = ["--resume_from_checkpoint", "--max_train_steps=21"]
    finish(*arguments, *sizes, *resume, num_processes=2, environment=FSDP)
    assert_same_curve(record_of(tmp_path / "shared"), record_of(tmp_path / "alone"))
    assert record_of(tmp_path / "shared")["model"]["class"] == "HfViTForImageClassification"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="is of another layout: distributed_type"):
        main([*arguments, "--per_device_train_batch_size=16", *resume, f"--output_dir={tmp_path / 'shared'}"])
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["architectures"] == ["HfViTForImageClassification"]
    alone, shared = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "shared"))
    assert alone.keys() == shared.keys()
    # AdamW makes steps of the learning rate, 2e-3, of gradients however small, so that rounding shows: beside a run in
    # fp64, one process has weights that differ by 7e-6 with AVX-512 (of keys' biases, whose gradient is zero) and by
    # 1e-4 with SSE4.1 and with AVX2. A sample lost or counted twice shows as a part of a step.
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, atol=3e-4, rtol=1e-4)
