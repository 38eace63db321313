"""Metrics against scikit-learn, torch and hand-made cases."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from hf_vit.tasks.image_classification.metrics import (
    ExpectedCalibrationError,
    classification_metrics,
    output_statistics,
    statistics,
)

NAMES = [f"class {i}" for i in range(8)]


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(NAMES), (200,), generator=generator)
    logits = torch.randn(200, len(NAMES), generator=generator) + 2 * torch.nn.functional.one_hot(labels, len(NAMES))
    gathered = {name: value.numpy() for name, value in statistics(logits, labels).items()}
    return logits, labels, classification_metrics(gathered, NAMES, detailed=True)


def test_metrics_are_those_of_scikit_learn(scored):
    logits, labels, metrics = scored
    probabilities, predictions = logits.double().softmax(-1).numpy(), logits.argmax(-1).numpy()
    assert metrics["accuracy"] == accuracy_score(labels, predictions)
    assert metrics["top5_accuracy"] == top_k_accuracy_score(labels, probabilities, k=5)
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert [row["label"] for row in metrics["per_class"]] == NAMES
    assert sum(row["support"] for row in metrics["per_class"]) == np.sum(metrics["confusion_matrix"]) == 200
    recalls = [row["recall"] for row in metrics["per_class"]]
    matrix = np.array(metrics["confusion_matrix"])
    np.testing.assert_allclose(recalls, matrix.diagonal() / matrix.sum(1))


def test_a_class_never_seen_counts_as_zero_and_warns_nobody(recwarn):
    gathered = {name: v.numpy() for name, v in statistics(torch.eye(3)[:2], torch.tensor([0, 1])).items()}
    metrics = classification_metrics(gathered, ["a", "b", "c"], detailed=True)
    assert metrics["per_class"][2] == {"label": "c", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert "top5_accuracy" not in metrics
    assert not recwarn.list


def test_calibration_error_of_a_hand_made_case():
    # Two samples sure at 0.9, one right: gap 0.4. Two at 0.6, both right: gap 0.4.
    inputs = {"predictions": [0, 0, 1, 1], "references": [0, 1, 1, 1], "confidences": [0.9, 0.9, 0.6, 0.6]}
    result = ExpectedCalibrationError().compute(**inputs, num_bins=10)
    assert result["expected_calibration_error"] == pytest.approx(0.4, abs=1e-6)
    assert [row["num_examples"] for row in result["calibration"]] == [2, 2]
    sure = ExpectedCalibrationError().compute(predictions=[1, 1], references=[1, 1], confidences=[1.0, 1.0])
    assert sure["expected_calibration_error"] == 0


def test_each_of_two_heads_has_metrics_of_its_own():
    outputs = SimpleNamespace(
        logits=torch.eye(3)[[0, 1, 2]],
        class_logits=torch.eye(3)[[0, 1, 0]],
        distillation_logits=torch.eye(3)[[1, 1, 0]],
    )
    gathered = {name: v.numpy() for name, v in output_statistics(outputs, torch.tensor([0, 1, 2])).items()}
    metrics = classification_metrics(gathered, ["a", "b", "c"], detailed=True)
    heads = {name: values["accuracy"] for name, values in metrics["heads"].items()}
    assert (metrics["accuracy"], heads) == (1.0, {"class": pytest.approx(2 / 3), "distillation": pytest.approx(1 / 3)})
    for name, values in metrics["heads"].items():  # those of a model with this head alone
        alone = output_statistics(SimpleNamespace(logits=getattr(outputs, f"{name}_logits")), torch.tensor([0, 1, 2]))
        alone = {name: value.numpy() for name, value in alone.items()}
        assert values == classification_metrics(alone, ["a", "b", "c"], detailed=True)
        assert {"expected_calibration_error", "per_class", "confusion_matrix"} < set(values)
    assert "heads" not in classification_metrics({k: v for k, v in gathered.items() if "/" not in k}, ["a", "b", "c"])
