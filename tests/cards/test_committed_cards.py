"""The models in model_cards: their cards say what the records beside them say, and the weights do what both say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from hf_vit import score
from hf_vit.cards import check_card
from hf_vit.hub.doctor import examine
from hf_vit.hub.own_code import refresh_code

ROOT = Path(__file__).parents[2]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/run.json"))
MODELS = [folder for folder in CARDS if (folder / "model.safetensors").is_file()]


def test_there_is_a_card_for_every_kind_of_model():
    assert {json.loads((folder / "run.json").read_text())["task"] for folder in CARDS} == {
        "image_classification",
        "translation",
    }


def test_the_small_models_hold_their_weights():
    assert {"dates", "digits", "fashion_mnist"} <= {folder.name for folder in MODELS}
    assert sum(path.stat().st_size for path in (ROOT / "model_cards").rglob("*")) < 8e6


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_committed_card_is_whole(folder):
    assert check_card(folder) == []
    text = (folder / "README.md").read_text()
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert images and all((folder / image).is_file() for image in images)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_its_code_is_the_packages(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    command = f"hf-vit doctor --refresh-code {folder.relative_to(ROOT)}"
    assert refresh_code(copy) == [], f"hf_vit/models has changed since: run `{command}` and commit what it changes"


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_it_can_be_published(folder):
    assert examine(folder) == []


@pytest.mark.parametrize(("name", "metric"), [("digits", "accuracy"), ("dates", "exact_match")])
def test_it_scores_what_its_card_says(name, metric, tmp_path):
    record = json.loads((ROOT / "model_cards" / name / "run.json").read_text())
    data = ["--dataset_name", record["arguments"]["dataset_name"], "--task", record["task"]]
    if name == "dates":
        data += ["--source_lang=text", "--target_lang=iso8601", "--per_device_eval_batch_size=250"]
    model = ["--model_name_or_path", str(ROOT / "model_cards" / name)]
    score.main([*model, *data, "--output_dir", str(tmp_path)])
    scored = json.loads((tmp_path / "score.json").read_text())["result"]
    assert scored["num_examples"] == record["result"]["num_examples"]
    assert scored["metrics"][metric] == pytest.approx(record["result"]["metrics"][metric], abs=1e-3)
