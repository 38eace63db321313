"""Options that change how a run computes or where it reports, not what it learns."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_runs import TINY, finish

from hf_vit.train import build_accelerator, parse
from hf_vit.trainer import tracking
from hf_vit.trainer.tracking import TrackingArguments


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(*argv)` trains a tiny model to the end; gives its folder and its record."""

    def train(*argv):
        folder = tmp_path_factory.mktemp("runs") / "run"
        finish(*TINY, *argv, "--output_dir", folder)
        return folder, json.loads((folder / "run.json").read_text())

    return train


@pytest.fixture(scope="module")
def plain(tiny_run):
    return tiny_run, json.loads((tiny_run / "run.json").read_text())


def losses(record):
    return [value for row in record["epochs"] for value in (row["train_loss"], row["metrics"]["loss"])]


def test_bf16_follows_the_curve_of_fp32_and_keeps_fp32_weights(run, plain):
    folder, record = run("--mixed_precision=bf16")
    assert record["hardware"]["mixed_precision"] == "bf16"
    assert losses(record) == pytest.approx(losses(plain[1]), rel=1e-2)
    assert losses(record) != losses(plain[1])
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_bit_of_the_weights(run, plain):
    dropout = "--config_overrides=hidden_dropout_prob=0.1,hidden_size=16,num_hidden_layers=1,num_attention_heads=2"
    (kept, _), (recomputed, _) = run(dropout), run(dropout, "--gradient_checkpointing")
    assert (kept / "model.safetensors").read_bytes() == (recomputed / "model.safetensors").read_bytes()
    assert (kept / "model.safetensors").read_bytes() != (plain[0] / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_a_compiled_model_learns_the_same_and_is_saved_like_any_other(run, plain):
    folder, record = run("--torch_compile")
    assert losses(record) == pytest.approx(losses(plain[1]), rel=1e-4)
    assert load_file(folder / "model.safetensors").keys() == load_file(plain[0] / "model.safetensors").keys()


def test_fp16_is_refused_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments = parse(["--mixed_precision=fp16", f"--output_dir={tmp_path}"])
    with pytest.raises(ValueError, match="--mixed_precision fp16 needs a GPU"):
        build_accelerator(arguments)


def test_trackers_get_the_losses_of_the_record(run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, record = run("--with_tracking", "--report_to=tensorboard", "--logging_steps=1")
    events = next(
        path for path in (folder / "logs").rglob("events.out.tfevents.*") if b"train_loss" in path.read_bytes()
    )
    accumulator = event_accumulator.EventAccumulator(str(events.parent))
    accumulator.Reload()
    told = {name: {e.step: e.value for e in accumulator.Scalars(name)} for name in ("train_loss", "test_loss")}
    assert set(told["train_loss"]) == set(range(1, record["epochs"][-1]["step"] + 1))
    for row in record["epochs"]:
        assert told["train_loss"][row["step"]] == pytest.approx(row["train_loss"], rel=1e-6)
        assert told["test_loss"][row["step"]] == pytest.approx(row["metrics"]["loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_are_known_by_name_and_must_be_installed(name, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [name])
    TrackingArguments(with_tracking=True, report_to=[name])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=f"'{name}' is not installed; installed: tensorboard"):
        TrackingArguments(with_tracking=True, report_to=[name])
