"""Where a run's numbers go besides run.json: Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from hf_vit.config import argument, check_range
from hf_vit.trainer.energy import check_energy


@dataclass
class TrackingArguments:
    _argument_group_name: ClassVar[str] = "Tracking"

    with_tracking: bool = argument(False, help="Report to the trackers of report_to.")
    report_to: list[str] = argument(
        lambda: ["tensorboard"], help="Trackers that Accelerate knows: tensorboard, wandb, trackio, ... or all."
    )
    tracker_project_name: str = argument("hf_vit", help="The project under which trackers file the run.")
    measure_energy: str | None = argument(
        None,
        help="Three letters of the country whose electricity is used, such as DEU: record the energy and CO2 of a run "
        "that is not interrupted, as codecarbon estimates them for the main process's machine.",
    )
    logging_steps: int = argument(10, help="Report the training loss every so many optimizer steps.")

    def __post_init__(self) -> None:
        check_range("logging_steps", self.logging_steps, 1)
        installed = sorted(str(name) for name in get_available_trackers())
        missing = [name for name in self.report_to if name != "all" and name not in installed]
        if self.with_tracking and missing:
            raise ValueError(f"--report_to {missing[0]!r} is not installed; installed: {', '.join(installed)}")
        check_energy(self.measure_energy)


def start_trackers(accelerator: Accelerator, arguments: TrackingArguments, config: dict[str, Any]) -> None:
    """Opens the trackers with the run's arguments, in the plain types that all of them take."""
    plain = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in config.items()
        if value is not None
    }
    accelerator.init_trackers(arguments.tracker_project_name, plain)


def log_metrics(accelerator: Accelerator, split: str, metrics: Mapping[str, Any], step: int) -> None:
    """Gives the trackers those metrics of a split that are numbers."""
    numbers = {f"{split}_{name}": value for name, value in metrics.items() if isinstance(value, (int, float))}
    accelerator.log(numbers, step=step)


def tracker_options(arguments: TrackingArguments, output_dir: str) -> dict[str, Any]:
    """Arguments of `Accelerator`; trackers that write files do so in output_dir/logs."""
    if not arguments.with_tracking:
        return {}
    return {"log_with": arguments.report_to, "project_dir": str(Path(output_dir) / "logs")}
