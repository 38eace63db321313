"""Runs that stop before their last step, and go on from there."""

import json
import signal

import pytest
import training_runs

from hf_vit import train
from hf_vit.trainer.checkpoint import CheckpointArguments, TrainingState
from hf_vit.trainer.loop import TrainingLoop
from hf_vit.trainer.stopping import StoppingArguments

RUN = [word for word in training_runs.TINY if not word.startswith(("--train_val", "--num_train"))]
RUN += [
    "--per_device_train_batch_size=32",
    "--dataset_name=sklearn_digits",
    "--train_val_split=0.3",
    "--ema_decay=none",
    "--num_train_epochs=4",
]


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    monkeypatch.setattr("hf_vit.trainer.run_folder.write_card", lambda folder: None)


def test_patience_counts_the_evaluations_since_the_best():
    state = TrainingState()
    stopping = StoppingArguments(early_stopping_patience=2)
    for step, accuracy in enumerate([0.1, 0.3, 0.2, 0.3], start=1):
        assert stopping.reason(state) is None
        state.step = step
        state.epochs = [*state.epochs, {"epoch": step, "step": step}]
        state.note_best("accuracy", "max", {"accuracy": accuracy})
    assert stopping.reason(state) == "no better for 2 evaluations (--early_stopping_patience 2)"
    state.step += 1  # within the next epoch
    assert stopping.reason(state) is None


def test_an_early_stop_is_the_same_after_resuming(tmp_path):
    # A rate of nearly nothing: the first epoch stays the best.
    run = [*RUN, "--learning_rate=1e-30", "--early_stopping_patience=2"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    train.main([*run, f"--output_dir={whole}"])
    record = json.loads((whole / "run.json").read_text())
    assert record["status"] == "finished" and [row["epoch"] for row in record["epochs"]] == [1, 2, 3]
    train.main([*run, f"--output_dir={part}", "--checkpointing_steps=3", "--checkpoints_total_limit=9"])
    checkpoint, again = part / "checkpoints" / "step_0000003", tmp_path / "again"
    train.main([*run, f"--output_dir={again}", f"--resume_from_checkpoint={checkpoint}"])
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert len(json.loads((again / "run.json").read_text())["epochs"]) == 3


def test_evaluations_every_few_steps_change_no_weight_and_keep_the_best(tmp_path):
    run = [*RUN, "--num_train_epochs=2"]
    plain, often = tmp_path / "plain", tmp_path / "often"
    train.main([*run, f"--output_dir={plain}"])
    train.main([*run, f"--output_dir={often}", "--eval_strategy=steps", "--eval_steps=3"])
    record = json.loads((often / "run.json").read_text())
    rows = record["epochs"]
    steps_per_epoch = json.loads((plain / "run.json").read_text())["epochs"][0]["step"]
    last = 2 * steps_per_epoch
    assert [row["step"] for row in rows] == sorted({*range(3, last, 3), last})
    assert [row["epoch"] for row in rows] == [round(row["step"] / steps_per_epoch, 7) for row in rows]
    assert (often / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    ends = json.loads((plain / "run.json").read_text())["epochs"][-1]
    assert rows[-1]["train_loss"] == ends["train_loss"] and rows[-1]["metrics"] == ends["metrics"]


def test_a_run_evaluated_by_steps_stops_early_the_same_after_a_signal(tmp_path, monkeypatch):
    # A rate of nearly nothing: the first evaluation stays the best.
    run = [*RUN, "--learning_rate=1e-30", "--eval_strategy=steps", "--eval_steps=2", "--early_stopping_patience=1"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    train.main([*run, f"--output_dir={whole}", "--load_best_model_at_end"])
    record = json.loads((whole / "run.json").read_text())
    assert record["status"] == "finished" and [row["step"] for row in record["epochs"]] == [2, 4]
    assert record["result"]["kept_epoch"] == record["epochs"][0]["epoch"] == 0.5

    evaluate = TrainingLoop.evaluate

    def interrupted(self, split, evaluator):
        self._interruption.received = signal.SIGTERM
        return evaluate(self, split, evaluator)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(TrainingLoop, "evaluate", interrupted)
        train.main([*run, f"--output_dir={part}"])
    interrupted_record = json.loads((part / "run.json").read_text())
    assert interrupted_record["status"] == "interrupted" and interrupted_record["epochs"] == []
    train.main([*run, f"--output_dir={part}", "--load_best_model_at_end", "--resume_from_checkpoint=latest"])
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    again = json.loads((part / "run.json").read_text())["epochs"]
    for name in ("epoch", "step", "train_loss", "metrics", "learning_rate"):
        assert [row[name] for row in again] == [row[name] for row in record["epochs"]], name


def test_steps_of_evaluation_are_given_with_their_strategy():
    for arguments in ({"eval_strategy": "steps"}, {"eval_steps": 5}):
        with pytest.raises(ValueError, match="--eval_strategy steps and --eval_steps go together"):
            CheckpointArguments(**arguments)
    with pytest.raises(ValueError, match="--eval_steps must be >= 1, found 0"):
        CheckpointArguments(eval_strategy="steps", eval_steps=0)
    words = ["--recipe=digits", "--ema_decay=none", "--num_averaged_epochs=2", "--eval_strategy=steps"]
    with pytest.raises(ValueError, match=r"--num_averaged_epochs .* goes with --eval_strategy epoch"):
        train.parse([*words, "--eval_steps=9"])


def test_a_run_whose_time_is_up_is_whole_and_goes_on_with_more(tmp_path):
    short, whole = tmp_path / "short", tmp_path / "whole"
    train.main([*RUN, f"--output_dir={short}", "--max_time=0.000001"])
    record = json.loads((short / "run.json").read_text())
    assert record["status"] == "finished" and record["epochs"][-1]["step"] == 1
    train.main([*RUN, f"--output_dir={short}", "--resume_from_checkpoint"])
    train.main([*RUN, f"--output_dir={whole}"])
    assert (short / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_all_processes_find_that_the_time_is_up_or_none_does():
    states = [TrainingState(step=3, training_seconds=seconds, epochs=[{"step": 3}]) for seconds in (59.9, 60.1)]
    stopping = StoppingArguments(max_time="0:01:00")
    assert stopping.reason(states[0]) is None and stopping.reason(states[1]) is not None
    totals = [state.totals for state in states]
    for state in states:
        state.share(totals)
    assert stopping.reason(states[0]) == stopping.reason(states[1]) and "the time is up" in stopping.reason(states[0])


def test_what_is_no_time_or_no_patience():
    assert StoppingArguments(max_time="1:02:03:04").max_seconds == 93784
    assert StoppingArguments(max_time="0:01:30").max_seconds == StoppingArguments(max_time="90").max_seconds == 90
    for text in ("0", "-1", "1:90:00", "soon", "inf", "nan"):
        with pytest.raises(ValueError, match=f"hours:minutes:seconds, found '{text}'"):
            StoppingArguments(max_time=text)
    with pytest.raises(ValueError, match="early_stopping_patience"):
        StoppingArguments(early_stopping_patience=0)
    with pytest.raises(ValueError, match="needs a validation split"):
        StoppingArguments(early_stopping_patience=1).check("test")
