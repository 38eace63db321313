"""Weights that are written from the file that they are mapped from: what safetensors reads is what they are."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_vit.conversion import weight_files
from hf_vit.conversion.weight_files import write_weights


def sources(path):
    """Tensors of many kinds, and those of a file, mapped."""
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(rows, 700, generator=generator) for name, rows in (("b", 90), ("c", 1))}, path)
    with safe_open(path, "pt") as file:
        mapped = {name: file.get_tensor(name) for name in ("b", "c")}
    others = {
        "bf16": torch.randn(3, 5, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(7, generator=generator).half(),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "transposed": mapped["b"].t(),
        "rows": mapped["b"][3:5],
    }
    return {**mapped, **others}


def assert_written(weights, path):
    write_weights({name: [tensor] for name, tensor in weights.items()}, path)
    found = load_file(path)
    assert set(found) == set(weights)
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_kind_of_tensor(tmp_path, monkeypatch):
    weights = sources(tmp_path / "source.safetensors")
    assert_written(weights, tmp_path / "written.safetensors")
    monkeypatch.setattr(weight_files, "_MAPS", tmp_path / "none")  # a system without it
    assert_written(weights, tmp_path / "from_memory.safetensors")
    assert (tmp_path / "written.safetensors").read_bytes() == (tmp_path / "from_memory.safetensors").read_bytes()


@pytest.mark.skipif(not weight_files._MAPS.exists(), reason="the system does not tell which memory is a file's")
def test_mapped_weights_are_copied_from_file_to_file(tmp_path, monkeypatch):
    weights, copied, sendfile = sources(tmp_path / "source.safetensors"), [], os.sendfile

    def counted(*arguments):
        copied.append(sendfile(*arguments))
        return copied[-1]

    monkeypatch.setattr(os, "sendfile", counted)
    assert_written(weights, tmp_path / "written.safetensors")
    assert sum(copied) == sum(weights[name].nbytes for name in ("b", "c", "rows"))


def test_files_are_not_read_for_what_was_changed_since(tmp_path):
    weights = sources(tmp_path / "source.safetensors")
    weights["b"].mul_(2)  # in memory alone: the file keeps what it held
    assert_written(weights, tmp_path / "written.safetensors")
    weights = sources(tmp_path / "source.safetensors")
    (tmp_path / "source.safetensors").unlink()
    assert_written(weights, tmp_path / "again.safetensors")
