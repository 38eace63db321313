"""The cards of the reference models say what the records beside them say."""

import json
import re
from pathlib import Path

import pytest

from hf_vit.cards import check_card

CARDS = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/run.json"))


def test_there_is_a_card_for_every_kind_of_model():
    assert {json.loads((folder / "run.json").read_text())["task"] for folder in CARDS} == {
        "image_classification",
        "translation",
    }


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_committed_card_is_whole(folder):
    assert check_card(folder) == []
    text = (folder / "README.md").read_text()
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert images and all((folder / image).is_file() for image in images)
