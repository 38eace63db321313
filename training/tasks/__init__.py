"""What can be trained. A task owns its data, model, loss and evaluation; the loop owns everything else."""

from __future__ import annotations

from training.arguments import Arguments, RunArguments, closest
from training.authors import AuthorArguments
from training.checkpoint import CheckpointArguments
from training.ema import EmaArguments
from training.optim import OptimizationArguments
from training.publishing import HubArguments
from training.tasks.image_classification import ImageClassification
from training.tasks.translation import Translation
from training.tracking import TrackingArguments

TASKS = {task.name: task for task in (ImageClassification, Translation)}


def argument_groups(task: str) -> list[type]:
    """The argument dataclasses of a task: those of every run, with its own in between.

    Raises:
        ValueError: there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"--task {task!r} is unknown; {closest(task, list(TASKS))}")
    return [
        RunArguments,
        *TASKS[task].argument_groups,
        OptimizationArguments,
        EmaArguments,
        CheckpointArguments,
        TrackingArguments,
        HubArguments,
        AuthorArguments,
    ]


def build_task(arguments: Arguments):
    """The task that `arguments` name, with its data and model loaded and checked."""
    return TASKS[arguments.run.task](arguments)
