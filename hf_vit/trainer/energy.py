"""Energy and carbon dioxide of a run, estimated by codecarbon without the network."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def check_energy(country: str | None) -> None:
    """Raises `ValueError` where codecarbon is missing, or knows no such country."""
    if country is None:
        return
    if find_spec("codecarbon") is None:
        raise ValueError("--measure_energy needs codecarbon: pip install codecarbon")
    from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        raise ValueError(f"--measure_energy must be a country's three letters, such as DEU or USA, found {country!r}")


class EnergyMeter:
    """Measures from its making on, the whole machine; nothing where no country is given.

    Args:
        country: ISO 3166-1 code of three letters of the country whose electricity the machine uses, or None.
    """

    def __init__(self, country: str | None):
        self._tracker = None
        if country is not None:
            from codecarbon import OfflineEmissionsTracker

            options: dict[str, Any] = {"save_to_file": False, "log_level": "error", "allow_multiple_runs": True}
            self._tracker = OfflineEmissionsTracker(country_iso_code=country, **options)
            self._tracker.start()

    def stop(self) -> dict[str, Any]:
        """The run record's `cost`: `energy_kwh` and `co2_kg` of CO2 equivalents; empty if nothing was measured."""
        if self._tracker is None:
            return {}
        co2: Any = self._tracker.stop()
        energy = self._tracker.final_emissions_data.energy_consumed
        return {"cost": {"energy_kwh": float(energy), "co2_kg": float(co2)}}
