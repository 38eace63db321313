"""The plan of a run, told before it starts."""

from __future__ import annotations

from typing import Any

from hf_vit.cards.records import read_author_file
from hf_vit.trainer.authors import author_file
from hf_vit.trainer.loop import TrainingLoop
from hf_vit.words import counted, printable


def plan(loop: TrainingLoop) -> str:
    """Model, parameters, data, steps and schedule of a run."""
    model, data, hardware = loop.record.content.model, loop.record.content.data, loop.record.content.hardware
    options = loop.arguments.optimization
    unit = loop.task.sample_unit
    sizes: list[tuple[str, Any]] = [(name, split.num_examples) for name, split in data.splits.items()]
    numbers = [f"{name} {size:,}" for name, size in sizes]
    name, last = sizes[-1]
    splits = ", ".join([*numbers[:-1], f"{name} {counted(last, unit)}"])
    # Of the highest layer, where they differ.
    highest, factor = loop.scheduler.base_lrs[-1], loop.scheduler.lr_lambdas[-1]
    rates = [highest * factor(step) for step in (0, loop.num_steps // 4, loop.num_steps // 2, loop.num_steps - 1)]
    file = author_file(loop.arguments.recipe_path, loop.output_dir)
    given = loop.arguments.author.card_license
    author = {**(read_author_file(file) if file else {}), **({"license": given} if given else {})}
    rows = {
        "model": f"{model.class_name}, {model.num_parameters:,} parameters, "
        f"{model.num_trainable_parameters:,} of them trained",
        "data": f"{data.name}: {splits}",
        **loop.task.plan_rows(),
        "steps": f"{loop.num_steps:,} of {loop.schedule.samples_per_step:,.0f} {unit}, "
        f"{loop.steps_per_epoch:,} in an epoch",
        "schedule": f"{options.lr_scheduler_type}, learning rate {', '.join(f'{rate:.3g}' for rate in rates)} "
        "at the start, after a quarter, half and at the end",
        **loop.budget.told(unit),
        "hardware": f"{hardware.num_processes} x {hardware.device_name}, {hardware.mixed_precision} mixed precision",
        "licence": author.get("license", "none given (--card_license)"),
        "output": str(loop.output_dir),
    }
    return "\n".join(f"{name:>9}: {printable(text)}" for name, text in rows.items())
