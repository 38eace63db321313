"""Trains a model: `accelerate launch training/train.py [--recipe NAME] [--flag value ...]`, see `--help`."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from transformers.utils.logging import disable_progress_bar

from training.arguments import Arguments, parse_arguments
from training.checkpoint import prepare_output_dir
from training.loop import TrainingLoop
from training.tasks import argument_groups, build_task


def build_accelerator(arguments: Arguments) -> Accelerator:
    options = arguments.optimization
    return Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=options.gradient_accumulation_steps),
    )


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("training").setLevel(logging.INFO)
    disable_progress_bar()  # of saving and loading; the loop has its own
    arguments = parse_arguments(argument_groups, argv)
    prepare_output_dir(
        Path(arguments.run.output_dir),
        overwrite=arguments.run.overwrite_output_dir,
        resume=arguments.checkpoint.resume_from_checkpoint is not None,
    )
    accelerator = build_accelerator(arguments)
    with accelerator.main_process_first():
        task = build_task(arguments)
    TrainingLoop(accelerator, task, arguments).train()


if __name__ == "__main__":
    main()
