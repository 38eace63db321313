"""The programs that measure speed run, with sizes that tell nothing, and say what they are to say."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


def test_growth_is_told_beside_theory(capsys):
    import scaling

    axes = ["tokens", "sentence", "decoding"]
    flags = ["--tiny", "--at_least=1", "--seconds=0", f"--num_threads={torch.get_num_threads()}"]
    assert scaling.main([*flags, "--axes", *axes]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {axis: [line for line in lines if line.startswith(f"axis: {axis}  of: time")] for axis in axes}
    assert all(len(found) == 1 and "theory" in found[0] and "slope of ours" in found[0] for found in told.values())


@pytest.mark.parametrize("power", [1, 2])
def test_slopes_are_powers_and_steeper_ones_are_marked(power):
    import scaling
    from timing import slope

    sizes = (1, 2, 4, 8)
    assert slope(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)
    rows = [{"axis": "x", "size": n, "macs": n, "held": n, "ours s": n**power, "peer s": n} for n in sizes]
    (found,) = scaling.slopes(rows)
    assert found["slope of ours"] == power and found["theory"] == 1 and found["too steep"] is (power > 1)


def test_memory_of_a_call_is_its_peak():
    from timing import peak_bytes

    taken = peak_bytes(lambda: (torch.ones(5 << 20), None)[1])  # 20 MiB, given back at once
    assert taken is None or 20 <= taken / 2**20 < 30


def test_what_a_gpu_is_asked_runs_on_a_cpu():
    import gpu

    parts = ["inference", "training", "attention", "fp16", "memory", "translation"]
    rows = gpu.main(["--tiny", "--parts", *parts])
    assert {row["row"] for row in rows} == set(parts)
    assert all(row["difference"] < 0.1 for row in rows if row["row"] == "attention")
