"""Energy of a run: asked for in a way that works, and recorded."""

import importlib.util
import json

import pytest
from training_runs import TINY, finish

from hf_vit.trainer import energy
from hf_vit.trainer.energy import EnergyMeter, check_energy


def test_what_is_asked_for_is_checked_at_once(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install codecarbon"):
        check_energy("DEU")
    check_energy(None)
    assert EnergyMeter(None).stop() == {}


@pytest.mark.skipif(importlib.util.find_spec("codecarbon") is None, reason="codecarbon is not installed")
def test_a_run_records_its_energy(tmp_path):
    with pytest.raises(ValueError, match=r"measure_energy must be a country's three letters.*'Germany'"):
        check_energy("Germany")
    finish(*TINY, "--measure_energy=DEU", "--output_dir", tmp_path)
    cost = json.loads((tmp_path / "run.json").read_text())["cost"]
    # Electricity has cost between 20 g and 1.2 kg of CO2 a kWh in every country so far.
    assert cost["energy_kwh"] > 0 and 0.02 < cost["co2_kg"] / cost["energy_kwh"] < 1.2
