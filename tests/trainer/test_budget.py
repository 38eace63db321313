"""The forecast that a run tells and heeds."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from hf_vit import train
from hf_vit.cost import Setup, forecast
from hf_vit.trainer import budget as budgets
from hf_vit.trainer.budget import Budget, available_bytes

ARGUMENTS = [
    "--recipe=digits",
    "--train_val_split=0",
    "--max_train_samples=8",
    "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
    "--per_device_train_batch_size=12",
    "--gradient_accumulation_steps=2",
]


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()

    def with_memory(memory, *argv):
        if memory is not None:
            monkeypatch.setattr(budgets, "available_bytes", lambda device, num_processes: memory)
        arguments = train.parse([*ARGUMENTS, *argv, "--output_dir", str(tmp_path / "run")])
        accelerator = train.build_accelerator(arguments)
        return accelerator, Budget(accelerator, train.build_task(arguments), arguments)

    yield with_memory
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()


def peak_of(budget, batch_size):
    setup = Setup(batch_size, training=True, mixed_precision=budget.forecast.setup.mixed_precision)
    return forecast(budget.config, setup).memory.peak + budget.average_bytes


def test_a_step_that_cannot_fit_is_refused_with_what_would_help(make):
    _, budget = make(1000)
    with pytest.raises(ValueError, match=r"a step needs .* GiB by the .*batch size 6.*--ignore_memory_forecast"):
        budget.check()
    assert "does not fit" in budget.told("images")["cost"]
    make(1000, "--ignore_memory_forecast")[1].check()
    make(2**40)[1].check()


def test_the_largest_batch_that_fits_keeps_the_samples_of_a_step(make):
    _, whole = make(2**40)
    memory = peak_of(whole, 8)
    accelerator, budget = make(memory, "--auto_batch_size")
    budget.fit_batch_size(accelerator)
    options = budget.options
    assert (options.per_device_train_batch_size, options.gradient_accumulation_steps) == (8, 3)
    assert accelerator.gradient_accumulation_steps == 3
    budget.check()
    accelerator, budget = make(2**40, "--auto_batch_size")
    budget.fit_batch_size(accelerator)
    assert (options := budget.options).per_device_train_batch_size == 24 and options.gradient_accumulation_steps == 1
    accelerator, budget = make(1000, "--auto_batch_size")
    with pytest.raises(ValueError, match="--auto_batch_size finds no batch that fits"):
        budget.fit_batch_size(accelerator)


def test_utilisation_is_the_share_of_a_matmuls_speed(make, monkeypatch):
    _, budget = make(None)
    monkeypatch.setattr(budgets, "matmul_flops", lambda device, dtype: 1e6)
    cost = budget.forecast
    assert budget.utilisation(5.0) == pytest.approx(2 * cost.step_macs / cost.setup.batch_size * 5 / 1e6)
    assert 0 < available_bytes(torch.device("cpu"), 2) <= available_bytes(torch.device("cpu"), 1)


def test_a_matmuls_speed_is_measured():
    assert budgets.matmul_flops(torch.device("cpu"), "float32") > 0
