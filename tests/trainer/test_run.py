"""Whole runs of the script: what it writes, what it refuses, and that a stranger can load it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vit.cards import check_card
from hf_vit.isolated.fresh_process import fresh_process

ROOT = Path(__file__).parents[2]
TINY = [
    "--num_train_epochs=2",
    "--max_train_samples=200",
    "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
]


def train(*argv, launcher=("-m", "accelerate.commands.launch")):
    command = [sys.executable, *launcher, "training/train.py", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(Path(__file__, "none"))  # it cannot be written, and nothing here needs it
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, train(*TINY, "--output_dir", str(folder))


def test_a_run_leaves_model_code_processor_card_and_records(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    expected = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "run.json", "curves.png"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".*"))
    assert {path.stat().st_mode for path in folder.iterdir() if path.is_file()} == {
        (folder / "README.md").stat().st_mode
    }
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoBackbone"} <= set(auto_map)
    assert all((folder / f"{entry.partition('.')[0]}.py").is_file() for entry in auto_map.values())


def test_the_records_say_what_happened(finished):
    folder, _ = finished
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["arguments"]["num_train_epochs"] == 2
    assert {"num_train_epochs", "output_dir"} <= set(record["non_default_arguments"]) < set(record["arguments"])
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    assert [row["step"] for row in record["epochs"]] == [4, 8]
    assert record["data"]["splits"]["train"]["num_examples"] == 200
    metrics = record["result"]["metrics"]
    assert record["result"]["num_examples"] == sum(row["support"] for row in metrics["per_class"]) == 360
    right = sum(row[i] for i, row in enumerate(metrics["confusion_matrix"]))
    assert metrics["accuracy"] == pytest.approx(right / 360)
    card = (folder / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert f"{100 * metrics['accuracy']:.2f} % accuracy" in card
    assert check_card(folder) == []


def test_a_dry_run_says_beforehand_what_happened(finished, tmp_path):
    process = train(*TINY, "--dry_run", "--output_dir", str(tmp_path / "run"))
    assert process.returncode == 0 and not (tmp_path / "run").exists()
    plan = dict(re.findall(r"^ *(\w+): (.+)$", process.stdout + process.stderr, re.MULTILINE))
    record = json.loads((finished[0] / "run.json").read_text())
    model, (first, last) = record["model"], record["epochs"]
    assert plan["model"].startswith(f"{model['class']}, {model['num_parameters']:,} parameters")
    assert "train 200, test 360" in plan["data"]
    assert plan["steps"] == f"{last['step']} of 64 images, {first['step']} in an epoch"
    assert re.search(r"^\S+ GFLOPs for each of the images, \S+ GiB of \S+ GiB \(forecast\)$", plan["cost"])
    assert all(row["mfu"] > 0 for row in record["epochs"])
    assert re.search(rf"rate 0, \S+, {first['learning_rate']:.3g}, \S+ at the start", plan["schedule"])


def test_the_log_is_clean_and_ends_with_how_to_load(finished):
    folder, process = finished
    text = process.stdout + process.stderr
    assert not re.search(r"traceback|error|warn(?!ing pass in)", text, re.IGNORECASE)
    assert str(folder) in text
    lines = text.strip().splitlines()
    assert lines[-2].startswith("from transformers import") and "trust_remote_code=True" in lines[-1]


def test_the_printed_lines_load_the_model_where_the_package_is_not(finished):
    folder, process = finished
    lines = "\n".join((process.stdout + process.stderr).strip().splitlines()[-2:]).replace(str(folder), "elsewhere")
    record = json.loads((folder / "run.json").read_text())
    sample = record["result"]["samples"][0]
    code = f"{lines}\nbest = classifier('elsewhere/{sample['file']}')[0]\nresult = best['label'], best['score']"
    with fresh_process(folder, "elsewhere", HF_HUB_OFFLINE="1") as stranger:
        label, score = stranger.run(code)
    assert (label, score) == (sample["prediction"], pytest.approx(sample["score"], abs=1e-5))


def test_a_second_run_is_refused_and_touches_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    process = train(*TINY, "--output_dir", str(folder), launcher=())
    assert process.returncode != 0
    assert "--overwrite_output_dir" in process.stderr and "is not empty" in process.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
