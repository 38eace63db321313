"""Temperatures against a closed search, mirrored views, and both on a run that is scored."""

import json

import numpy as np
import pytest
import torch
import training_runs
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from hf_vit import score, train
from hf_vit.tasks.image_classification.calibration import AdjustedClassifier, fit_temperature


def test_the_temperature_has_the_lowest_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (400,), generator=generator)
    logits = 3 * (torch.randn(400, 5, generator=generator) + F.one_hot(labels, 5))
    found = minimize_scalar(lambda t: F.cross_entropy(logits.double() / t, labels).item(), bounds=(0.1, 20))
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(found.x, rel=1e-3) and temperature > 1.5
    right = 10 * F.one_hot(labels, 5).double()  # no mistake: the sharper, the better
    assert 0.01 <= fit_temperature(right, labels) < 1


def test_mirrored_views_are_averaged_as_probabilities(tiny_model):
    model = tiny_model()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own, mirrored = (model(pixel_values=each).logits for each in (pixels, pixels.flip(-1)))
        both = AdjustedClassifier(model, temperature=1.7, flip=True)(pixel_values=pixels).logits
        scaled = AdjustedClassifier(model, temperature=1.7)(pixel_values=pixels).logits
    expected = ((own / 1.7).softmax(-1) + (mirrored / 1.7).softmax(-1)) / 2
    torch.testing.assert_close(both.softmax(-1), expected)
    torch.testing.assert_close(scaled, own / 1.7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose training is so short that its probabilities are far too small."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    words = [word for word in training_runs.TINY if not word.startswith("--train_val")]
    words += ["--dataset_name=sklearn_digits", "--train_val_split=0.5", "--temperature_scaling"]
    train.main([*words, f"--output_dir={folder}"])
    return folder


def scored(folder, output, *arguments):
    command = ["--model_name_or_path", str(folder), "--dataset_name=sklearn_digits", f"--output_dir={output}"]
    return score.main([*command, *arguments])["result"]["metrics"]


def test_a_run_stores_it_and_scores_with_it_when_asked(run, tmp_path):
    temperature = json.loads((run / "config.json").read_text())["calibration_temperature"]
    plain, cooled = scored(run, tmp_path / "a"), scored(run, tmp_path / "b", "--apply_temperature")
    assert 0 < temperature != 1 and cooled["accuracy"] == plain["accuracy"]
    assert cooled["loss"] < plain["loss"]
    flipped = scored(run, tmp_path / "c", "--test_time_augmentation=flip")
    assert np.isfinite(flipped["loss"]) and flipped["loss"] != plain["loss"]


def test_a_model_without_a_temperature_is_told(tmp_path, tiny_run):
    with pytest.raises(ValueError, match=r"config has none .train with --temperature_scaling"):
        scored(tiny_run, tmp_path / "a", "--apply_temperature")


def test_a_temperature_needs_a_validation_split(tmp_path):
    words = [*training_runs.TINY, "--dataset_name=sklearn_digits", "--temperature_scaling", "--dry_run"]
    with pytest.raises(ValueError, match="--temperature_scaling needs a validation split"):
        train.main([*words, f"--output_dir={tmp_path}"])
