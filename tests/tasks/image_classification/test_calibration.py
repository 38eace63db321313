"""Temperatures against a closed search, mirrored views, and both on a run that is scored."""

import json

import numpy as np
import pytest
import torch
import training_runs
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from hf_vit import score, train
from hf_vit.tasks.image_classification.calibration import AdjustedClassifier, fit_temperature, views_of
from hf_vit.tasks.image_classification.review import suspect_labels


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
        both = AdjustedClassifier(model, temperature=1.7, augmentation="flip")(pixel_values=pixels).logits
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
    flipped = scored(run, tmp_path / "c", "--test_time_augmentation=ten_crop", "--top_losses=3", "--predictions")
    assert np.isfinite(flipped["loss"]) and flipped["loss"] != plain["loss"]
    rows = [json.loads(line) for line in (tmp_path / "c" / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["loss"] for row in rows) / len(rows) == pytest.approx(flipped["loss"], rel=1e-5)
    page, worst = (tmp_path / "c" / "top_losses.html").read_text(), max(rows, key=lambda row: row["loss"])
    first = f"labelled {worst['label']}, taken for {worst['prediction']} ({worst['score']:.0%})"
    assert first in page.split("<figure>")[1] and 3 <= page.count("<figure>") <= 6


def test_a_model_without_a_temperature_is_told(tmp_path, tiny_run):
    with pytest.raises(ValueError, match=r"config has none .train with --temperature_scaling"):
        scored(tiny_run, tmp_path / "a", "--apply_temperature")


def test_a_temperature_needs_a_validation_split(tmp_path):
    words = [*training_runs.TINY, "--dataset_name=sklearn_digits", "--temperature_scaling", "--dry_run"]
    with pytest.raises(ValueError, match="--temperature_scaling needs a validation split"):
        train.main([*words, f"--output_dir={tmp_path}"])


def test_crops_are_torchvisions_of_a_larger_image():
    pixels = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    larger = F.interpolate(pixels, size=(18, 36), mode="bilinear", antialias=True, align_corners=False)
    corners = [larger[..., top : top + 16, left : left + 32] for top in (0, 2) for left in (0, 4)]
    expected = [*corners, larger[..., 1:17, 2:34]]
    found = views_of(pixels, "five_crop")
    for crop, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(crop, wanted)
    mirrored = views_of(pixels, "ten_crop")
    assert len(mirrored) == 10 and views_of(pixels, None) == [pixels]
    means = torch.stack(mirrored).mean((0, 3)), torch.stack([each.flip(-1) for each in mirrored]).mean((0, 3))
    torch.testing.assert_close(*means)  # each view is there with its mirror image


def test_labels_are_suspect_where_another_class_is_as_sure_as_it_is_on_its_own():
    # index, label, prediction, confidence, loss of the label; class 1 has a mean of 0.8 on its own images.
    rows = np.array(
        [
            [0, 0, 0, 0.6, -np.log(0.6)],
            [1, 1, 1, 0.7, -np.log(0.7)],
            [2, 1, 1, 0.9, -np.log(0.9)],
            [3, 0, 1, 0.85, -np.log(0.1)],
            [4, 0, 1, 0.75, -np.log(0.2)],
            [5, 0, 1, 0.95, -np.log(0.01)],
        ]
    )
    assert suspect_labels(rows).tolist() == [5, 3]
