"""A study trains what is missing, and its numbers are the runs' own."""

import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_vit import study
from hf_vit.record import record_from
from hf_vit.search import check_space, value_of
from hf_vit.train import parse


def finished(folder, accuracy, words=()):
    folder.mkdir(parents=True)
    run = {
        "task": "image_classification",
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
        words = study.run_words(study.load_study(str(study_file)), variant, seed, folder)
        finished(folder, accuracy, [*words, "--resume_from_checkpoint=latest"])
    folders = [str(study_file), "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    study.main(folders)
    results = json.loads((tmp_path / "results" / "poolings.json").read_text())
    summary = {entry["variant"]: entry["accuracy"] for entry in results["summary"]}
    assert summary["cls"] == {"mean": pytest.approx(0.6), "std": pytest.approx(statistics.stdev([0.5, 0.7]))}
    assert {(row["variant"], row["seed"]): row["accuracy"] for row in results["runs"]} == accuracies
    assert (
        "| `mean` | 85.00 ± 7.07 % | 0.1500 ± 0.0707 | 7 | 2 |" in (tmp_path / "results" / "poolings.md").read_text()
    )
    assert (tmp_path / "results" / "poolings.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="a run with other arguments, --num_train_epochs 3, not 1: choose another"):
        study.main([*folders, "--num_train_epochs=1"])


def test_a_run_is_the_recipe_with_the_studys_and_the_variants_arguments(study_file, tmp_path):
    loaded = study.load_study(str(study_file))
    words = study.run_words(loaded, "cls", 1, tmp_path / "new")
    flags = dict(zip(words[::2], words[1::2]))
    assert flags["--recipe"] == "digits" and flags["--seed"] == "1" and flags["--num_train_epochs"] == "3"
    assert json.loads(flags["--config_overrides"]) == {"use_class_token": True, "pooling": "cls"}
    words = study.run_words(loaded, "mean", 0, tmp_path / "new")
    assert words[words.index("--num_train_epochs") + 1] == "5"

    (tmp_path / "stopped" / "checkpoints" / "step_0000005").mkdir(parents=True)
    assert study.run_words(loaded, "cls", 0, tmp_path / "stopped")[-2:] == ["--resume_from_checkpoint", "latest"]


def test_further_arguments_of_the_command_line_hold_for_every_run(study_file, tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        finished(Path(command[command.index("--output_dir") + 1]), 0.5)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(study.subprocess, "run", run)
    folders = ["--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    study.main([str(study_file), *folders, "--dataset_name", "some folder", "--horizontal_flip"])
    assert len(commands) == 4
    for command in commands:
        assert command[command.index("--dataset_name") + 1] == "some folder"
        assert "--horizontal_flip" in command and command[command.index("--num_train_epochs") + 1] in ("3", "5")
    assert json.loads((tmp_path / "results" / "poolings.json").read_text())["study"]["arguments"]["dataset_name"]
    with pytest.raises(ValueError, match="'stray' belongs to no argument"):
        study.main([str(study_file), *folders, "stray"])


def test_a_dry_run_prints_the_commands_that_are_missing(study_file, tmp_path, capsys):
    finished(tmp_path / "runs" / "cls" / "seed_0", 0.5)
    study.main([str(study_file), "--output_dir", str(tmp_path / "runs"), "--dry_run"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[:2] for command in commands] == [["hf-vit", "train"]] * 3
    arguments = [parse(command[2:]) for command in commands]
    assert [(each.run.seed, each.optimization.num_train_epochs) for each in arguments] == [(0, 5), (1, 3), (1, 5)]
    assert not (tmp_path / "runs" / "poolings.json").exists()


def test_the_script_of_a_clone_finds_its_studies_from_any_folder(tmp_path):
    """And a wrong name is told with the nearest of them."""
    script = Path(__file__).parents[1] / "training" / "study.py"
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, script, "pooling_digits", "--dry_run"], **options)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 18
    refused = subprocess.run([sys.executable, script, "poling_digits"], **options)
    assert refused.returncode == 2
    assert refused.stderr.endswith("study 'poling_digits' not found; did you mean 'pooling_digits'?\n")


def test_what_is_wrong_with_a_study_is_said(study_file, tmp_path):
    with pytest.raises(ValueError, match="study 'poling' not found; give the path"):
        study.load_study("poling")
    fields = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**fields, "sedes": [1]}))
    with pytest.raises(ValueError, match=r"unknown field 'sedes' in study poolings.yaml; did you mean 'seeds'"):
        study.load_study(str(study_file))
    study_file.write_text("- 1")
    with pytest.raises(ValueError, match="must hold `name: value` lines, found list"):
        study.load_study(str(study_file))
    study_file.write_text(yaml.safe_dump({**fields, "recipe": "no_such_recipe"}))
    loaded = study.load_study(str(study_file))
    with pytest.raises(ChildProcessError, match=r"^cls, seed 0 failed: train.py: error: .*no_such_recipe.*$"):
        study.train_one(loaded, "cls", 0, tmp_path / "run")


@pytest.fixture
def search_file(tmp_path):
    path = tmp_path / "rates.yaml"
    space = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "layer_decay": [0.7, 1.0]}
    fields = {"title": "Rates", "recipe": "digits", "seeds": [0], "metrics": ["accuracy"], "trials": 25}
    path.write_text(yaml.safe_dump({**fields, "search": space}))
    return path


def test_a_search_finds_the_best_by_validation_and_goes_on_where_it_was(search_file, tmp_path, monkeypatch):
    tried = []

    def trained(study_, variant, seed, folder):
        values = study_["variants"][variant]
        tried.append(values)
        if len(tried) == 4:
            raise ChildProcessError("trial, seed 0 failed: out of memory")
        if len(tried) == 8:
            raise KeyboardInterrupt
        right = 1 - abs(math.log10(values["learning_rate"]) + 3) / 4 - (values["layer_decay"] == 1)
        # The test split says the opposite.
        rows = [{"epoch": 1, "step": 5, "metrics": {"accuracy": right, "loss": 1.0}}]
        content = {"task": "image_classification", "data": {"splits": {"validation": {}, "test": {}}}, "epochs": rows}
        return record_from({**content, "result": {"split": "test", "metrics": {"accuracy": -right, "loss": 1.0}}})

    monkeypatch.setattr(study, "train_one", trained)
    words = [str(search_file), "--search", "--output_dir", str(tmp_path / "runs")]
    with pytest.raises(KeyboardInterrupt):
        study.main(words)
    study.main(words)
    trials = json.loads((tmp_path / "runs" / "rates_search.json").read_text())["trials"]
    assert len(trials) == 25 and len(tried) == 25 + 2 and tried[7] == tried[8]
    assert trials[0]["value"] == max(trial["value"] for trial in trials)
    assert trials[0]["layer_decay"] == 0.7 and 10**-3.6 < trials[0]["learning_rate"] < 10**-2.4
    assert (tmp_path / "runs" / "rates_search.md").read_text().splitlines()[2].startswith(f"| {trials[0]['trial']} |")
    study.main(words)
    assert len(tried) == 25 + 2  # nothing is left to try


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": {"low": 1, "high": 0.1}}, "learning_rate must be a list of two values or more"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "from above 0"),
        ({"learning_rate": [0.1]}, "two values or more"),
        ([], "must name arguments"),
    ],
)
def test_spaces_that_cannot_be_searched(space, message):
    with pytest.raises(ValueError, match=message):
        check_space(space)


def test_a_search_never_chooses_by_a_test_split():
    run = record_from({"task": "image_classification", "data": {"splits": {"test": {}}}})
    with pytest.raises(ValueError, match="a test split chooses nothing"):
        value_of(run, "accuracy")


def test_folds_are_an_axis_and_their_predictions_one_file(study_file, tmp_path):
    content = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**content, "seeds": [0], "folds": 3}))
    loaded = study.load_study(str(study_file))
    for (variant, seed, fold), folder in study.runs_of(loaded, tmp_path / "runs").items():
        words = study.run_words(loaded, variant, seed, folder, fold)
        finished(folder, 0.5 + fold / 10, words)
        rows = [{"train_index": index, "label": "a", "prediction": "ab"[index == 4]} for index in range(fold, 7, 3)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study.main([str(study_file), "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")])
    results = json.loads((tmp_path / "results" / "poolings.json").read_text())
    assert [(row["variant"], row["fold"]) for row in results["runs"]] == [
        (v, f) for v in ("cls", "mean") for f in range(3)
    ]
    assert results["summary"][0]["accuracy"]["mean"] == pytest.approx(0.6)
    assert results["out_of_fold"][0] == {
        "variant": "cls",
        "seed": 0,
        "accuracy": pytest.approx(6 / 7),
        "num_examples": 7,
    }
    lines = (tmp_path / "results" / "poolings_mean_seed_0_out_of_fold.jsonl").read_text().splitlines()
    assert [json.loads(line)["train_index"] for line in lines] == list(range(7))
    assert [json.loads(line)["fold"] for line in lines] == [0, 1, 2, 0, 1, 2, 0]
