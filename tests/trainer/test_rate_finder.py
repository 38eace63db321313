"""The range test of learning rates on a loss whose course is known, and on a run."""

import json

import numpy as np
import pytest
import training_runs

from hf_vit import train
from hf_vit.trainer.rate_finder import range_test

RATES = np.geomspace(1e-4, 100, 100).tolist()


def descent(curvature):
    """Gradient descent on curvature * w ** 2 / 2 from w = 1."""
    state = {"w": 1.0}

    def step(rate):
        loss = curvature * state["w"] ** 2 / 2
        state["w"] *= 1 - rate * curvature
        return loss

    return step


def test_losses_and_the_steepest_fall_of_a_quadratic():
    found = range_test(descent(2.0), RATES)
    w = np.cumprod([1.0, *(1 - 2 * np.asarray(found.rates[:-1]))])
    np.testing.assert_allclose(found.losses, w**2, rtol=1e-9, atol=1e-300)
    weights = [0.9 ** np.arange(n)[::-1] for n in range(1, len(w) + 1)]  # of the losses so far, the last most
    smoothed = [np.average(w[: len(each)] ** 2, weights=each) for each in weights]
    np.testing.assert_allclose(found.smoothed, smoothed, rtol=1e-9)
    # Beyond 2 / curvature descent diverges, and the loss falls fastest before.
    assert found.rates[-1] > 1 and 0.01 < found.suggestion < 1
    falls = np.diff(smoothed)
    assert abs(found.rates.index(found.suggestion) - int(np.argmin(falls[10:])) - 10) <= 1


def test_a_loss_that_diverges_at_once_or_never_falls():
    with pytest.raises(ValueError, match=r"diverged after \d steps, at a learning rate of only .*look at the data"):
        range_test(descent(1e6), RATES)
    with pytest.raises(ValueError, match="diverged after 3 steps"):
        range_test(_losses([1, 1, 1, float("nan")]), RATES)
    with pytest.raises(ValueError, match="the loss fell at no learning rate"):
        range_test(lambda rate: 1 + rate, RATES)


def _losses(values):
    following = iter(values)
    return lambda rate: float(next(following))


def test_a_run_finds_its_rate_and_trains_nothing(tmp_path, capsys):
    words = [*training_runs.TINY, "--find_learning_rate", f"--output_dir={tmp_path / 'run'}"]
    train.main([*words, "--per_device_train_batch_size=50"])
    found = json.loads((tmp_path / "run_learning_rate.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) > 50 and 1e-6 < found["suggestion"] < 1
    assert f"--learning_rate {found['suggestion']:.2g}" in capsys.readouterr().out
    assert (tmp_path / "run_learning_rate.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "run").exists()
