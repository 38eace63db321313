"""Trains a model: `accelerate launch training/train.py [--recipe NAME] [--flag value ...]`, see `--help`."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from hf_vit import tasks
from hf_vit.config import Arguments, RunArguments, parse_arguments
from hf_vit.tasks.task import Task
from hf_vit.trainer.authors import AuthorArguments
from hf_vit.trainer.averaging import EmaArguments
from hf_vit.trainer.checkpoint import CheckpointArguments, prepare_output_dir
from hf_vit.trainer.cpu import keep_freed_memory, use_all_cores
from hf_vit.trainer.loop import TrainingLoop
from hf_vit.trainer.optim import OptimizationArguments
from hf_vit.trainer.plan import plan
from hf_vit.trainer.publishing import HubArguments
from hf_vit.trainer.tracking import TrackingArguments, tracker_options


def argument_groups(task: str) -> list[type]:
    """The argument dataclasses of a task: those of every run, with its own in between.

    Raises:
        ValueError: there is no such task.
    """
    return [
        RunArguments,
        *tasks.class_of(task, "task", Task).argument_groups,
        OptimizationArguments,
        EmaArguments,
        CheckpointArguments,
        TrackingArguments,
        HubArguments,
        AuthorArguments,
    ]


def parse(argv: list[str] | None = None) -> Arguments:
    """The arguments of a run from a command line, `sys.argv[1:]` when None; see `config.parse_arguments`."""
    return parse_arguments(argument_groups, tasks.recipes(), argv)


def build_task(arguments: Arguments) -> Task:
    """The task that `arguments` name, with its data and model loaded and checked."""
    return tasks.class_of(arguments.run.task, "task", Task)(arguments)


def build_accelerator(arguments: Arguments) -> Accelerator:
    options = arguments.optimization
    if options.mixed_precision == "fp16" and PartialState().device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU; on a CPU it can be no or bf16")
    return Accelerator(
        mixed_precision=options.mixed_precision,
        **tracker_options(arguments.tracking, arguments.run.output_dir),
        dynamo_backend="inductor" if options.torch_compile else None,
        # One process prepares the data, and writes the card, while the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=options.gradient_accumulation_steps),
    )


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_vit").setLevel(logging.INFO)
    disable_progress_bar()  # of saving and loading; the loop has its own
    disable_progress_bars()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # tells of tied weights at every checkpoint
    arguments = parse(argv)
    prepare_output_dir(
        Path(arguments.run.output_dir),
        overwrite=arguments.run.overwrite_output_dir,
        resume=arguments.checkpoint.resume_from_checkpoint is not None,
    )
    accelerator = build_accelerator(arguments)
    use_all_cores(accelerator, arguments.data.dataloader_num_workers)
    with accelerator.main_process_first():
        task = build_task(arguments)
    loop = TrainingLoop(accelerator, task, arguments)
    accelerator.print(plan(loop), flush=True)
    if not arguments.run.dry_run:
        loop.train()


if __name__ == "__main__":
    main()
