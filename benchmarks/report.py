"""The file that a benchmark leaves."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hf_vit.fast_paths import describe_machine
from hf_vit.trainer.run_record import device_name


def write_report(
    path: Path, rows: Sequence[dict[str, Any]], modules: Sequence[ModuleType], *, device: str = "cpu", **facts: Any
) -> None:
    """Rows measured on a device of this machine as JSON, with its name, what the processor can do, the threads, the
    day and the modules' versions."""
    report = {
        "device": device,
        "device_name": device_name(torch.device(device)),
        "processor": describe_machine(),
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        **facts,
        "versions": {module.__name__: module.__version__ for module in modules},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
