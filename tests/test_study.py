"""A study trains what is missing, and its numbers are the runs' own."""

import json
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml

from hf_vit import study
from hf_vit.train import parse


def finished(folder, accuracy, words=()):
    folder.mkdir(parents=True)
    run = {
        "status": "finished",
        "arguments": parse(words).to_dict(),
        "model": {"num_parameters": 7},
        "result": {"split": "test", "num_examples": 10, "metrics": {"accuracy": accuracy, "loss": 1 - accuracy}},
        "duration_s": {"training": 1.0},
        "versions": {},
        "hardware": {},
    }
    (folder / "run.json").write_text(json.dumps(run))


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "poolings.yaml"
    fields = {
        "title": "Poolings",
        "recipe": "digits",
        "seeds": [0, 1],
        "metrics": ["accuracy", "loss"],
        "arguments": {"num_train_epochs": 3, "config_overrides": {"use_class_token": True}},
        "variants": {"cls": {"config_overrides": {"pooling": "cls"}}, "mean": {"num_train_epochs": 5}},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


def test_finished_runs_are_not_trained_again_and_give_the_results(study_file, tmp_path):
    accuracies = {("cls", 0): 0.5, ("cls", 1): 0.7, ("mean", 0): 0.8, ("mean", 1): 0.9}
    for (variant, seed), accuracy in accuracies.items():
        folder = tmp_path / "runs" / variant / f"seed_{seed}"
        words = study.run_command(study.load_study(str(study_file)), variant, seed, folder)[5:]
        finished(folder, accuracy, [*words, "--resume_from_checkpoint=latest"])
    places = [str(study_file), "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    study.main(places)
    results = json.loads((tmp_path / "results" / "poolings.json").read_text())
    summary = {entry["variant"]: entry["accuracy"] for entry in results["summary"]}
    assert summary["cls"] == {"mean": pytest.approx(0.6), "std": pytest.approx(statistics.stdev([0.5, 0.7]))}
    assert {(row["variant"], row["seed"]): row["accuracy"] for row in results["runs"]} == accuracies
    assert (
        "| `mean` | 85.00 ± 7.07 % | 0.1500 ± 0.0707 | 7 | 2 |" in (tmp_path / "results" / "poolings.md").read_text()
    )
    assert (tmp_path / "results" / "poolings.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="a run with other arguments, --num_train_epochs 3, not 1: choose another"):
        study.main([*places, "--num_train_epochs=1"])


def test_a_run_is_the_recipe_with_the_studys_and_the_variants_arguments(study_file, tmp_path):
    loaded = study.load_study(str(study_file))
    command = study.run_command(loaded, "cls", 1, tmp_path / "new")
    flags = dict(zip(command[5::2], command[6::2]))
    assert flags["--recipe"] == "digits" and flags["--seed"] == "1" and flags["--num_train_epochs"] == "3"
    assert json.loads(flags["--config_overrides"]) == {"use_class_token": True, "pooling": "cls"}
    command = study.run_command(loaded, "mean", 0, tmp_path / "new")
    assert command[command.index("--num_train_epochs") + 1] == "5"

    (tmp_path / "stopped" / "checkpoints" / "step_0000005").mkdir(parents=True)
    assert study.run_command(loaded, "cls", 0, tmp_path / "stopped")[-2:] == ["--resume_from_checkpoint", "latest"]


def test_further_arguments_of_the_command_line_hold_for_every_run(study_file, tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        finished(Path(command[command.index("--output_dir") + 1]), 0.5)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(study.subprocess, "run", run)
    places = ["--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    study.main([str(study_file), *places, "--dataset_name", "some folder", "--horizontal_flip"])
    assert len(commands) == 4
    for command in commands:
        assert command[command.index("--dataset_name") + 1] == "some folder"
        assert "--horizontal_flip" in command and command[command.index("--num_train_epochs") + 1] in ("3", "5")
    assert json.loads((tmp_path / "results" / "poolings.json").read_text())["study"]["arguments"]["dataset_name"]
    with pytest.raises(SystemExit, match="'stray' belongs to no argument"):
        study.main([str(study_file), *places, "stray"])


def test_what_is_wrong_with_a_study_is_said(study_file, tmp_path):
    with pytest.raises(ValueError, match="study 'poling' not found"):
        study.load_study("poling")
    fields = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**fields, "sedes": [1]}))
    with pytest.raises(ValueError, match=r"unknown field 'sedes' in study poolings.yaml; did you mean 'seeds'"):
        study.load_study(str(study_file))
    study_file.write_text(yaml.safe_dump({**fields, "recipe": "no_such_recipe"}))
    loaded = study.load_study(str(study_file))
    with pytest.raises(RuntimeError, match=r"(?s)cls, seed 0 failed.*no_such_recipe"):
        study.train_one(loaded, "cls", 0, tmp_path / "run")
