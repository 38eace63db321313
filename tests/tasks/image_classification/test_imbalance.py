"""Classes of unequal sizes: losses against torch and the papers' formulas, weights, sampling, and runs with them."""

import json

import numpy as np
import pytest
import torch
import training_runs
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from hf_vit import train
from hf_vit.tasks.image_classification.imbalance import mean_recall, rarity, weights_of
from hf_vit.tasks.image_classification.losses import ClassificationLoss, LossArguments
from hf_vit.trainer.sampler import BalancedBatchSampler

NAMES = ["a", "b", "c"]
COUNTS = np.array([90, 9, 3])


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, generator=generator), torch.randint(0, 3, (12,), generator=generator)


def loss_of(scored, weights=None, counts=None, **arguments):
    return ClassificationLoss(LossArguments(**arguments), weights, counts)(*scored)


def test_weighted_cross_entropy_is_torchs(scored):
    weights = [0.1, 0.9, 2.0]
    expected = F.cross_entropy(*scored, weight=torch.tensor(weights))
    assert loss_of(scored, weights).item() == pytest.approx(expected.item(), rel=1e-6)
    one_hot = (scored[0], F.one_hot(scored[1], 3).float())
    assert loss_of(one_hot, weights).item() == pytest.approx(expected.item(), rel=1e-6)
    targets = one_hot[1]
    per_class = F.binary_cross_entropy_with_logits(scored[0], targets, weight=torch.tensor(weights))
    assert loss_of(scored, weights, loss_type="bce").item() == pytest.approx(per_class.item(), rel=1e-6)


def test_focal_loss_is_the_papers(scored):
    p = scored[0].double().softmax(-1).gather(1, scored[1][:, None])[:, 0]
    for gamma in (0.0, 1.5):
        expected = (-((1 - p) ** gamma) * p.log()).mean().item()
        assert loss_of(scored, loss_type="focal", focal_gamma=gamma).item() == pytest.approx(expected, rel=1e-5)
    assert loss_of(scored, loss_type="focal", focal_gamma=0.0).item() == pytest.approx(F.cross_entropy(*scored).item())
    weights = torch.tensor([0.2, 1.0, 1.8]).double()
    expected = (-weights[scored[1]] * (1 - p) ** 2 * p.log()).mean().item()
    assert loss_of(scored, weights.tolist(), loss_type="focal").item() == pytest.approx(expected, rel=1e-5)


def test_logit_adjusted_loss_is_the_papers(scored):
    logits, labels = scored[0].double(), scored[1]
    prior = torch.tensor(COUNTS / COUNTS.sum())
    tau = 0.7
    # Equation 10 of arXiv 2007.07314: log(1 + sum over the others of (prior' / prior_y)^tau exp(f' - f_y)).
    own = logits.gather(1, labels[:, None])
    ratio = (prior[None] / prior[labels][:, None]) ** tau
    others = (ratio * (logits - own).exp()).masked_fill(F.one_hot(labels, 3).bool(), 0).sum(-1)
    found = loss_of(scored, counts=COUNTS.tolist(), loss_type="logit_adjusted", logit_adjustment_tau=tau)
    assert found.item() == pytest.approx(others.log1p().mean().item(), rel=1e-5)


def test_auto_weights_are_the_inverse_frequency_with_mean_1():
    weights = np.array(weights_of("auto", COUNTS, NAMES))
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), COUNTS))
    assert weights.mean() == pytest.approx(1) and weights == pytest.approx(balanced / balanced.mean())


def test_weights_of_a_file_are_checked(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"c": 3, "a": 0.5, "b": 1}))
    assert weights_of(str(file), COUNTS, NAMES) == [0.5, 1.0, 3.0]
    for content, words in (
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "has weights of classes that do not exist: d"),
        ({"a": 1, "b": 1}, "has no weight of: c"),
        ({"a": 1, "b": 1, "c": 0}, "weight of 'c' must be a number > 0, found 0"),
        ({"a": 1, "b": 1, "c": "much"}, "weight of 'c' must be a number > 0, found 'much'"),
        ([1, 2, 3], "must hold `name: weight`"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            weights_of(str(file), COUNTS, NAMES)
    with pytest.raises(ValueError, match="must be auto or a file, found 'automatic'"):
        weights_of("automatic", COUNTS, NAMES)
    with pytest.raises(ValueError, match="needs training images of every class, and 'b' has none"):
        weights_of("auto", np.array([3, 0, 1]), NAMES)


def test_balanced_accuracy_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 4, 60), generator.integers(0, 5, 60)  # class 4 does not occur
    matrix = confusion_matrix(labels, predictions, labels=range(5))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, predictions)
    assert mean_recall(matrix) == pytest.approx(expected)


def test_a_class_twenty_times_rarer_is_told():
    assert rarity(np.array([59, 3, 5]), NAMES) is None
    assert "60 images of 'a' and 3 of 'b', 20 times fewer" in rarity(np.array([60, 3, 5]), NAMES)


def test_balanced_sampling_draws_each_class_equally_and_no_view_twice():
    labels = np.repeat([0, 1, 2], COUNTS)
    sampler = BalancedBatchSampler(labels, 4, 2, seed=0)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and {len(batch) for batch in batches} == {4}
        keys = [key for batch in batches for key in batch]
        assert len(set(keys)) == len(keys)
        counts = np.bincount(labels[[key.index for key in keys]])
        assert counts.max() - counts.min() <= 1
        # Within a class every sample comes before any comes again.
        seen = np.bincount([key.index for key in keys], minlength=len(labels))
        assert all(np.ptp(seen[labels == label]) <= 1 for label in range(3))
        epochs.append(keys)
    assert [key.index for key in epochs[0]] != [key.index for key in epochs[1]]


REWEIGHTED = [
    *training_runs.TINY,
    "--dataset_name=sklearn_digits",
    "--train_val_split=0.2",
    "--per_device_train_batch_size=8",
    "--metric_for_best_model=balanced_accuracy",
    "--balanced_sampling",
    "--class_weights=auto",
    "--loss_type=focal",
    "--ema_decay=none",
]


def test_a_balanced_run_resumes_within_an_epoch_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vit.trainer.run_folder.write_card", lambda folder: None)
    whole, part = tmp_path / "whole", tmp_path / "part"
    train.main([*REWEIGHTED, f"--output_dir={whole}"])
    train.main([*REWEIGHTED, f"--output_dir={part}", "--checkpointing_steps=5", "--checkpoints_total_limit=9"])
    checkpoint = part / "checkpoints" / "step_0000015"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["state"]["batch"] > 0
    again = tmp_path / "again"
    train.main([*REWEIGHTED, f"--output_dir={again}", f"--resume_from_checkpoint={checkpoint}"])
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    record = json.loads((whole / "run.json").read_text())
    assert set(record["epochs"][0]["metrics"]) >= {"balanced_accuracy", "f1_macro", "accuracy"}
    assert record["result"]["metrics"]["balanced_accuracy"] > 0
    with pytest.raises(ValueError, match="of another position: sampling"):
        plain = [word for word in REWEIGHTED if word != "--balanced_sampling"]
        train.main([*plain, f"--output_dir={tmp_path / 'other'}", f"--resume_from_checkpoint={checkpoint}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--balanced_sampling", "--repeated_augmentation=2"], "--balanced_sampling repeats images itself"),
        (["--balanced_sampling", "--streaming"], "--balanced_sampling does not go with --streaming"),
        (["--class_weights=auto", "--streaming"], "--class_weights auto does not go with --streaming"),
        (["--metric_for_best_model=f1_micro"], "one label an image is one of accuracy, balanced_accuracy"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, arguments, words):
    plain = [word for word in training_runs.TINY if not word.startswith("--max_train_samples")]
    with pytest.raises(ValueError, match=words):
        train.main([*plain, "--dataset_name=sklearn_digits", f"--output_dir={tmp_path}", "--dry_run", *arguments])
