"""A task that stands outside the package trains, evaluates, cards and scores without another file being edited."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "adding_a_task"
ENVIRONMENT = {
    **os.environ,
    "HF_VIT_TASKS_PATH": str(EXAMPLES),
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
}
RUN = ["--recipe", "rotation", "--max_train_samples=96", "--max_eval_samples=30", "--num_train_epochs=2"]
RUN += ["--per_device_train_batch_size=8", "--per_device_eval_batch_size=4", "--dataloader_num_workers=2"]
RUN += ["--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"]


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two processes with two loader workers each."""
    folder = tmp_path_factory.mktemp("rotation")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone", "-m"]
    run(folder, *launch, "hf_vit.train", *RUN, "--output_dir=model")
    return folder / "model"


def test_it_trains_and_records_its_own_metrics(trained):
    record = json.loads((trained / "run.json").read_text())
    assert (record["status"], record["task"], record["hardware"]["num_processes"]) == ("finished", "digit_rotation", 2)
    assert record["command"].startswith("hf-vit train --recipe rotation ")
    assert record["result"]["num_examples"] == 30 and len(record["epochs"]) == 2
    metrics = record["result"]["metrics"]
    assert 0 < metrics["mean_error"] < 180 and 0 <= metrics["near"] <= 1


def test_it_has_a_card_of_its_own(trained):
    text = (trained / "README.md").read_text()
    metrics = json.loads((trained / "run.json").read_text())["result"]["metrics"]
    assert f"| Mean error (degrees) | {metrics['mean_error']:.4g} |" in text and "turned by" in text
    assert "pipeline_tag: image-classification\n" in text
    assert "the card says what the records say" in run(trained.parent, "-m", "hf_vit.cli", "card", "--check", trained)


def test_it_is_scored(trained):
    """With other batches, in one process, to the same result."""
    score = ["-m", "hf_vit.score", "--model_name_or_path", trained, "--max_eval_samples=30", "--predictions"]
    run(trained.parent, *score, "--output_dir=score", "--per_device_eval_batch_size=7", "--trust_remote_code")
    found = json.loads((trained.parent / "score" / "score.json").read_text())["result"]
    recorded = json.loads((trained / "run.json").read_text())["result"]["metrics"]
    assert found["num_examples"] == 30
    assert found["metrics"]["mean_error"] == pytest.approx(recorded["mean_error"], rel=1e-4)
    lines = (trained.parent / "score" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["index"] for row in rows] == list(range(30))
    errors = [abs((row["answer"] - row["angle"] + 180) % 360 - 180) for row in rows]
    assert np.mean(errors) == pytest.approx(recorded["mean_error"], rel=1e-4)
