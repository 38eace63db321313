"""States of optimizers, schedules, averages and generators as files that nothing runs when they are read: safetensors
that hold the tensors, and in their header the rest as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_TREE = "tree"  # of the header's fields


def write_state(path: Path, state: Any) -> None:
    """Write dictionaries, lists and tuples of tensors, arrays, numbers, texts and None, all of which come back as they
    are. A tensor that stands in several places is written once.

    Raises:
        TypeError: there is something else.
        OSError: it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _described(state, tensors, {})
    try:
        save_file(tensors, path, {_TREE: json.dumps(tree)})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_state(path: Path) -> Any:
    """The state that `write_state` wrote.

    Raises:
        ValueError: the file is not what it wrote.
    """
    try:
        with safe_open(path, "pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            return _restored(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or missing: {error}") from error


def read_old_state(path: Path) -> Any:
    """The state in a file that Accelerate wrote: a pickle, of which nothing but tensors and plain values is read.

    Raises:
        ValueError: the file is damaged, missing, or holds anything else.
    """
    reconstruct: Any = np.zeros(1).__reduce__()[0]  # what arrays of this numpy are pickled by
    try:
        with torch.serialization.safe_globals([np.ndarray, np.dtype, np.dtypes.UInt32DType, reconstruct]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on broken files
        raise ValueError(f"{path} is damaged, missing, or holds more than tensors and numbers: {error}") from error


def generator_states() -> dict[str, Any]:
    """States of the generators that this process draws from."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generators(states: Mapping[str, Any]) -> None:
    """Put the generators into the states of `generator_states`, or of Accelerate's file."""
    names = {"python": "random_state", "numpy": "numpy_random_seed", "torch": "torch_manual_seed"}
    found = {name: states.get(name, states.get(old)) for name, old in names.items()}
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["torch"])
    on_gpu = states.get("cuda", states.get("torch_cuda_manual_seed"))
    if on_gpu is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(on_gpu)


def _described(value: Any, tensors: dict[str, torch.Tensor], names: dict[Any, str]) -> Any:
    """The value as JSON has it, its tensors put into `tensors`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.dtype)
        if key not in names or value.numel() == 0:
            names[key] = str(len(tensors))
            tensors[names[key]] = value.detach().cpu().contiguous().clone()
        return {"tensor": names[key]}
    if isinstance(value, np.ndarray):
        name = str(len(tensors))
        tensors[name] = torch.from_numpy(value.astype(np.int64))
        return {"array": name, "dtype": str(value.dtype)}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_described(each, tensors, names) for each in value]}
    if isinstance(value, Mapping):
        return {"items": [[key, _described(each, tensors, names)] for key, each in _plain_items(value)]}
    raise TypeError(f"a state holds a {type(value).__name__}, which cannot be written: {value!r}")


def _plain_items(value: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key, each in value.items():
        if not isinstance(key, (str, int)):
            raise TypeError(f"a state has the key {key!r}, which cannot be written")
        yield key, each


def _restored(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "array" in tree:
        return tensors[tree["array"]].numpy().astype(tree["dtype"])
    if "items" in tree:
        return {key: _restored(each, tensors) for key, each in tree["items"]}
    values = [_restored(each, tensors) for each in tree["list" if "list" in tree else "tuple"]]
    return values if "list" in tree else tuple(values)
