"""Runs that the code of version 0.1.0 began go on from their checkpoints, and end where that code ended."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import training_runs
from safetensors.torch import load_file

FIXTURES = Path(__file__).parents[1] / "fixtures" / "version_0_1_0"


def assert_alike(found, expected, path=""):
    """The same content, numbers but for what processors round otherwise; later versions may tell more."""
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), path
        for name, value in expected.items():
            assert_alike(found[name], value, f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, value in enumerate(expected):
            assert_alike(found[number], value, f"{path}[{number}]")
    else:
        is_number = isinstance(expected, float)
        assert found == (pytest.approx(expected, rel=1e-5, abs=1e-7) if is_number else expected), path


@pytest.mark.parametrize("task", ["image_classification", "translation"])
def test_a_checkpoint_of_version_0_1_0_goes_on_to_the_weights_of_its_run(tmp_path, task):
    old = FIXTURES / task
    record = json.loads((old / "run.json").read_text())
    words = shlex.split(record["command"])
    folder = tmp_path / "run"
    shutil.copytree(old / "checkpoints", folder / "checkpoints")
    training_runs.finish(*words[words.index("training/train.py") + 1 : -1], folder, "--resume_from_checkpoint")

    expected, found = (load_file(each / "model.safetensors") for each in (old, folder))
    start = load_file(old / "checkpoints" / "step_0000003" / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        # The bits are the same where the processor is: elsewhere what has no gradient but rounding, as the bias of
        # attention's keys, steps in whichever direction that points.
        if not name.endswith(".bias"):
            assert name not in start or not torch.equal(tensor, start[name])
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    resumed = json.loads((folder / "run.json").read_text())
    measured = ("epoch", "step", "train_loss", "learning_rate", "metrics")
    for row, other in zip(resumed["epochs"], record["epochs"], strict=True):
        assert_alike({name: row[name] for name in measured}, {name: other[name] for name in measured})
    # Which samples a card shows is no part of what a run is to end with.
    found, expected = ({**each["result"], "samples": []} for each in (resumed, record))
    assert_alike(found, expected)
