"""Files of weights, written from file to file where the weights are still in the one that they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

_MAPS = Path("/proc/self/smaps")  # Linux has it; elsewhere all bytes come from memory

_PIECE = 1 << 16  # bytes: of more at once, Linux looks for as much memory in one piece, which can take it longer


@dataclass(frozen=True)
class _Mapping:
    """A part of memory, from `start` to `end`, that holds a file's bytes from `offset` on."""

    start: int
    end: int
    offset: int
    path: str


def write_weights(weights: Mapping[str, Sequence[torch.Tensor]], path: Path) -> None:
    """Write tensors to a new file of safetensors.

    Of a checkpoint that is converted most are bytes of its file, mapped into memory. They are read from that file, not
    through the mapping, whose pages the system would have to put into memory one by one: it takes half the time and
    none of the memory.

    Args:
        weights: by name; each as its parts, which are joined along the first axis. On the CPU.
        path: where to.
    """
    names = sorted(weights, key=lambda name: (-weights[name][0].element_size(), name))  # as the format aligns them
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        shape, dtype = _joined(weights[name])
        begin, position = position, position + sum(part.nbytes for part in weights[name])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, position]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    mappings = list(_unchanged_mappings())
    with ExitStack() as stack, path.open("wb", buffering=0) as target:
        opened: dict[str, int] = {}
        _write(target, memoryview(len(content).to_bytes(8, "little") + content))
        for tensor in (part.detach().contiguous() for name in names for part in weights[name]):
            mapping = _mapping_of(tensor, mappings)
            if mapping is None:
                _write(target, tensor.view(-1).view(torch.uint8).numpy().data)
                continue
            if mapping.path not in opened:
                opened[mapping.path] = stack.enter_context(open(mapping.path, "rb")).fileno()
            offset = tensor.data_ptr() - mapping.start + mapping.offset
            _copy(opened[mapping.path], target.fileno(), offset, tensor.nbytes)


def _joined(parts: Sequence[torch.Tensor]) -> tuple[list[int], str]:
    """Shape and type of a weight."""
    first = parts[0]
    shape = list(first.shape if len(parts) == 1 else (sum(len(part) for part in parts), *first.shape[1:]))
    return shape, _dtype_name(first.dtype)


def _write(target: Any, content: memoryview) -> None:
    while len(content):
        content = content[target.write(content[:_PIECE]) :]


def _copy(source: int, target: int, offset: int, count: int) -> None:
    while count:
        copied = os.sendfile(target, source, offset, count)
        if not copied:
            raise OSError("a file of weights became shorter while it was read")
        offset, count = offset + copied, count - copied


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """The name that safetensors gives it."""
    content = save({"": torch.empty(0, dtype=dtype)})
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])[""]["dtype"]


def _mapping_of(tensor: torch.Tensor, mappings: list[_Mapping]) -> _Mapping | None:
    start = tensor.data_ptr()
    return next((each for each in mappings if each.start <= start and start + tensor.nbytes <= each.end), None)


def _unchanged_mappings() -> Iterator[_Mapping]:
    """Files in this process's memory of which no byte was changed there."""
    try:
        known = _MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for entry in _entries(known):
        head, *facts = entry
        addresses, _, offset, _, _, *path = head.split(maxsplit=5)
        changed = sum(int(fact.split()[1]) for fact in facts if fact.startswith(("Anonymous:", "Swap:")))
        is_file = bool(path) and path[0].startswith("/") and os.path.isfile(path[0])
        if is_file and not path[0].endswith(" (deleted)") and not changed:
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield _Mapping(start, end, int(offset, 16), path[0])


def _entries(text: str) -> Iterator[list[str]]:
    """The lines of each mapping: one with its addresses and its file, then `Name: value`."""
    entry: list[str] = []
    for line in text.rstrip("\n").split("\n"):  # names of files may hold what else ends lines
        if not line.split(maxsplit=1)[0].endswith(":") and entry:
            yield entry
            entry = []
        entry.append(line)
    if entry:
        yield entry


__all__ = ["write_weights"]
