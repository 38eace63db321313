"""Metrics against scikit-learn, torch and hand-made cases."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from transformers import ViTImageProcessor

from hf_vit.tasks.image_classification.evaluation import ClassificationEvaluator
from hf_vit.tasks.image_classification.metrics import (
    ClassificationCounter,
    ConfusionMatrix,
    ExpectedCalibrationError,
    NegativeLogLikelihood,
    PerClassReport,
    TopKAccuracy,
    statistics,
)

NAMES = [f"class {i}" for i in range(8)]


def metrics_of(logits, labels, names, batch_size=None):
    """Of the samples in batches."""
    counter = ClassificationCounter(names, detailed=True)
    for batch in zip(logits.split(batch_size or len(logits)), labels.split(batch_size or len(labels))):
        counter.update(**{name: values.numpy() for name, values in statistics(*batch).items()})
    return counter.compute()


@pytest.fixture(params=[200, 64, 1])
def scored(request):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(NAMES), (200,), generator=generator)
    logits = torch.randn(200, len(NAMES), generator=generator) + 2 * torch.nn.functional.one_hot(labels, len(NAMES))
    return logits, labels, metrics_of(logits, labels, NAMES, request.param)


def test_metrics_are_those_of_scikit_learn(scored):
    logits, labels, metrics = scored
    probabilities, predictions = logits.double().softmax(-1).numpy(), logits.argmax(-1).numpy()
    assert metrics["accuracy"] == accuracy_score(labels, predictions)
    assert metrics["top5_accuracy"] == top_k_accuracy_score(labels, probabilities, k=5)
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert metrics["confusion_matrix"] == confusion_matrix(labels, predictions).tolist()
    rows = zip(*precision_recall_fscore_support(labels, predictions))
    for row, values in zip(metrics["per_class"], rows):
        assert [row[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(list(values))
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert [row["label"] for row in metrics["per_class"]] == NAMES
    assert sum(row["support"] for row in metrics["per_class"]) == np.sum(metrics["confusion_matrix"]) == 200
    recalls = [row["recall"] for row in metrics["per_class"]]
    matrix = np.array(metrics["confusion_matrix"])
    np.testing.assert_allclose(recalls, matrix.diagonal() / matrix.sum(1))


def test_a_class_never_seen_counts_as_zero_and_warns_nobody(recwarn):
    metrics = metrics_of(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b", "c"])
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


def test_a_metric_as_a_module_is_what_is_counted_in_batches(scored):
    logits, labels, metrics = scored
    found = {name: values.numpy() for name, values in statistics(logits, labels).items()}
    chosen = {"predictions": found["ranked"][:, 0], "references": found["labels"]}
    ranked = {"predictions": found["ranked"], "references": found["labels"]}
    modules = {
        **NegativeLogLikelihood().compute(predictions=found["log_probability"]),
        **TopKAccuracy().compute(**ranked),
        **TopKAccuracy().compute(**ranked, k=5),
        **ConfusionMatrix().compute(**chosen, num_classes=len(NAMES)),
        **PerClassReport().compute(**chosen, class_names=NAMES),
    }
    calibration = ExpectedCalibrationError().compute(**chosen, confidences=found["confidence"])
    rows = zip(calibration.pop("calibration"), metrics["calibration"])
    assert all(row == pytest.approx(expected) for row, expected in rows)
    assert calibration == pytest.approx({name: metrics[name] for name in calibration})
    assert modules.pop("loss") == pytest.approx(metrics["loss"])
    assert modules == {name: metrics[name] for name in modules}


class Heads(torch.nn.Module):
    """A model of three classes whose prediction is right of as many samples as there are, and its heads less often."""

    def forward(self, pixel_values):
        chosen = {"logits": [0, 1, 2], "class_logits": [0, 1, 0], "distillation_logits": [1, 1, 0]}
        return SimpleNamespace(**{name: torch.eye(3)[classes] for name, classes in chosen.items()})


def test_each_of_two_heads_has_metrics_of_its_own():
    names, labels = ["a", "b", "c"], torch.tensor([0, 1, 2])
    evaluator = ClassificationEvaluator([{"image": None}] * 3, names, ViTImageProcessor(), final=True)
    keys = np.array([[0, index, 0] for index in (2, 0, 1)])
    batch = {"pixel_values": torch.zeros(3, 3, 2, 2, dtype=torch.uint8), "labels": labels, "sample_key": keys}
    evaluator.update(batch, evaluator.step(Heads(), batch))
    metrics = evaluator.compute()
    heads = {name: values["accuracy"] for name, values in metrics["heads"].items()}
    assert (metrics["accuracy"], heads) == (1.0, {"class": pytest.approx(2 / 3), "distillation": pytest.approx(1 / 3)})
    outputs = Heads()(None)
    for name, values in metrics["heads"].items():  # those of a model with this head alone
        assert values == metrics_of(getattr(outputs, f"{name}_logits"), labels, names)
        assert {"expected_calibration_error", "per_class", "confusion_matrix"} < set(values)
    assert [(row["index"], row["label"], row["prediction"]) for row in evaluator.predictions()] == [
        (0, "b", "b"),
        (1, "c", "c"),
        (2, "a", "a"),
    ]
