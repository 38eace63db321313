"""Reads what a run left in its folder. Nothing here interprets; see `facts`."""

import json
import math
from pathlib import Path

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"


def read_json(folder: Path, filename: str) -> dict:
    """The object in `folder/filename`, without its missing (null) and non-finite entries.

    Raises:
        ValueError: the file is absent, is not JSON, or does not hold an object.
    """
    path = folder / filename
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"folder: {folder} holds no {filename}; a card is written from a run's folder") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"folder: {path} is not valid JSON ({error})") from None
    if not isinstance(records, dict):
        raise ValueError(f"folder: {path} must hold a JSON object, found {type(records).__name__}")
    return measured_only(records)


def measured_only(value):
    """The same JSON value without the entries of its objects that are null, NaN or infinite."""
    if isinstance(value, dict):
        cleaned = {key: measured_only(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    if isinstance(value, list):
        return [measured_only(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
