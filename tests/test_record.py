"""The record of a run is one schema: what it does not know is an error, and what older runs left is read."""

import json
import math
import shutil
from pathlib import Path

import pytest
from card_records import run_records, write_run

from hf_vit.cards import check_card, write_card
from hf_vit.cards.card import facts_of
from hf_vit.cards.facts import Curve
from hf_vit.hub.staging import staged
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.record import SCHEMA_VERSION, Record, read_record, record_from

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "fixtures" / "version_0_1_0"
FOLDERS = [OLD / "image_classification", OLD / "translation"]
FOLDERS += sorted(path.parent for path in (ROOT / "model_cards").glob("*/run.json"))
# What trains, and is not there where only cards are made.
TRAINING = ["accelerate", "datasets", "torchvision", "sklearn", "sacrebleu", "evaluate", "babel"]


def measured(value):
    """A value of JSON without what is null, which the schema leaves out; arguments and configurations are kept."""
    if isinstance(value, list):
        return [measured(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if item is not None and item != {}}
    return {name: item if name in ("arguments", "config") else measured(item) for name, item in kept.items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_of_older_runs_are_read_whole(folder):
    content = json.loads((folder / "run.json").read_text())
    for row in content["epochs"]:
        unit = "images" if content["task"] == "image_classification" else "sentences"
        if f"{unit}_per_second" in row:  # as version 0.1.0 said it
            row["samples_per_second"] = row.pop(f"{unit}_per_second")
    assert read_record(folder).to_dict() == measured(content)


def test_the_cards_of_older_runs_are_those_that_their_records_make(tmp_path):
    """Maps of attention lie over their images since; translators have their speed on another line, and say at the top
    that their pipeline comes with them."""
    assert all("How much attention" in problem for problem in check_card(FOLDERS[0]))
    copy = shutil.copytree(FOLDERS[1], tmp_path / "translation")
    before = (copy / "README.md").read_text().splitlines()
    assert all("tokens/s" in problem or "line 40: differs" in problem for problem in check_card(copy))
    write_card(copy)  # measured by the old code with the same files: nothing is executed
    after = (copy / "README.md").read_text().splitlines()
    pipeline = "The pipeline `translation`, which transformers 5 has not, comes with the model: "
    after[39] = after[39].partition(f" {pipeline}")[0]
    assert check_card(copy) == [] and sorted(after) == sorted(before)
    assert (copy / "run.json").read_bytes() == (FOLDERS[1] / "run.json").read_bytes()


@pytest.mark.parametrize("folder", FOLDERS[:2], ids=lambda folder: folder.name)
def test_a_record_goes_to_the_hub_without_the_folders_of_a_computer(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "run")
    with staged(copy) as stage:
        assert read_record(stage) == read_record(folder), "its paths are relative"
    content = json.loads((copy / "run.json").read_text())
    content["arguments"]["output_dir"] = content["data"]["name"] = "/home/someone/runs/own"
    content["command"] = "train.py --train_dir /home/someone/images"
    if content["task"] == "image_classification":
        content["teachers"] = [{"name": "/home/someone/runs/teacher", "accuracy": 0.5}]
    write_run(copy, content)
    with staged(copy) as stage:
        assert "/home" not in (stage / "run.json").read_text()
        record = read_record(stage)
    assert (record.data.name, record.arguments["output_dir"]) == ("own", "own")
    assert record.command == "train.py --train_dir images"
    assert record.result == read_record(folder).result


def test_a_card_needs_nothing_that_trains(tmp_path):
    """The command `hf-vit card`, in a process where what only training needs cannot be imported."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in FOLDERS[:2]]
    with fresh_process(hidden=TRAINING, HF_HUB_OFFLINE="1") as process:
        process.let_in()
        process.run("from typer.testing import CliRunner\nfrom hf_vit.cli import app")
        for copy in copies:
            (copy / "README.md").unlink()
            for argv in (["card", str(copy)], ["card", str(copy), "--check"]):
                process.run("done = CliRunner().invoke(app, argv)", argv=argv)
                said = process.run("result = [done.output, repr(done.exception)]")
                assert process.run("result = done.exit_code") == 0, said


@pytest.mark.parametrize(
    "section, value, message",
    [
        ("statuss", "finished", "statuss: the schema has no such field"),
        ("data", {"class_name": ["a"]}, "data.class_name: the schema has no such field"),
        ("data", [], "data: input should be"),
        ("result", {"metrics": {"per_classes": []}}, "result.metrics.per_classes: the schema has no such field"),
        ("result", {"metrics": {"accuracy": "high"}}, "result.metrics.accuracy: input should be a valid number"),
        ("result", {"samples": [{"file": "a.png", "label": "1", "score": 1.0}]}, "result.samples.0.prediction: field"),
        ("epochs", [{"epochs": 1}], "epochs.0.epochs: the schema has no such field"),
        ("card", {"flop": 1}, "card.flop: the schema has no such field"),
        ("schema_version", SCHEMA_VERSION + 1, "a later hf_vit wrote it"),
        ("schema_version", "1", "schema_version '1'"),
    ],
)
def test_what_the_schema_does_not_know_is_an_error(tmp_path, section, value, message):
    content = {"task": "image_classification", section: value}
    with pytest.raises(ValueError, match=message):
        record_from(content)
    write_run(tmp_path, content)
    for use in (read_record, check_card, write_card):
        with pytest.raises(ValueError, match=f"run.json is not what a run writes: .*{message}"):
            use(tmp_path)


def test_metrics_that_a_task_does_not_name_are_numbers():
    metrics = record_from({"task": "translation", "result": {"metrics": {"beam4_bleu": 1.5}}}).result.metrics
    assert metrics.number("beam4_bleu") == 1.5 and metrics.number("beam5_bleu") is None
    with pytest.raises(ValueError, match=r"result\.metrics\.table: input should be a valid number"):
        record_from({"task": "translation", "result": {"metrics": {"table": []}}})


def test_a_curve_of_a_metric_that_the_record_does_not_have_is_an_error(tmp_path, monkeypatch):
    facts = facts_of(write_run(tmp_path, run_records()))
    monkeypatch.setattr(type(facts), "curves", [Curve("Accuracy", "accuracy (%)", "acuracy")])
    with pytest.raises(AttributeError, match="acuracy"):
        facts.figures["curves.png"](facts)


def test_what_was_not_measured_is_not_in_the_file():
    content = {"task": "none of ours", "seed": None, "result": {"metrics": {"loss": math.nan, "other": math.inf}}}
    record = record_from(content)
    assert type(record) is Record and record.result.metrics.loss is None
    assert record.to_dict() == {"task": "none of ours", "result": {"metrics": {}}}
