"""The cost of a model as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from hf_vit.cost.forecast import Forecast
from hf_vit.words import counted

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def as_text(cost: Forecast) -> str:
    """A table of the parts, the memory, and what fits and what would save how much."""
    setup = cost.setup
    work = f"training with {setup.optimizer}" if setup.training else "inference"
    precision = setup.dtype if setup.mixed_precision == "no" else f"{setup.mixed_precision} over {setup.dtype}"
    title = (
        f"{counted(setup.batch_size, 'samples')}, {counted(cost.tokens, 'tokens')} each, {work}, {precision}, "
        f"{setup.attn_implementation}{', gradient checkpointing' if setup.gradient_checkpointing else ''}"
    )
    return "\n\n".join([title, _parts(cost), _memory(cost), _remedies(cost)])


def _parts(cost: Forecast) -> str:
    rows = [["part", "parameters", "MACs", "FLOPs"]]
    rows += [[part.name, f"{part.parameters:,}", _short(part.macs), _short(part.flops)] for part in cost.parts]
    rows.append(["all", f"{cost.parameters:,}", _short(cost.macs), _short(2 * cost.macs)])
    if cost.generated_token_macs is not None:
        macs = cost.generated_token_macs
        rows.append(["a generated token, the last", "", _short(macs), _short(2 * macs)])
    if cost.setup.training:
        rows.append(["with the backward pass", "", _short(cost.step_macs), _short(2 * cost.step_macs)])
    return _table(rows)


def _memory(cost: Forecast) -> str:
    memory = cost.memory
    rows = [["memory", "GiB"]]
    for name in ("parameters", "gradients", "optimizer", "activations", "working", "peak"):
        rows.append([name, gib(getattr(memory, name))])
    rows.append(["attention weights of one layer", gib(memory.attention_matrix)])
    if cost.cache_bytes is not None:
        rows.append(["cache of the whole texts", gib(cost.cache_bytes)])
    return _table(rows)


def _remedies(cost: Forecast) -> str:
    lines = []
    if cost.limit is not None:
        verdict = "fits" if cost.fits else "does not fit"
        lines.append(f"It {verdict} into {gib(cost.limit)} GiB; the largest batch that fits is {cost.largest_batch}.")
    rows = [["change", "peak GiB", "saves GiB", *(["largest batch"] if cost.limit is not None else []), "price"]]
    for remedy in cost.remedies:
        batch = [] if remedy.largest_batch is None else [f"{remedy.largest_batch:,}"]
        rows.append([remedy.name, gib(remedy.peak), gib(remedy.saved), *batch, remedy.price])
    return "\n".join([*lines, _table(rows)])


def gib(number: int) -> str:
    """Bytes in GiB."""
    return f"{number / 2**30:.2f}"


def _short(number: int) -> str:
    for step, letter in _STEPS:
        if number >= step:
            return f"{number / step:.2f} {letter}"
    return str(number)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of the rows' widest cells; numbers, which start with a digit or a minus, on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    is_number = [all(row[i][:1].isdigit() or row[i][:1] in ("-", "") for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_number)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
