"""Trains a model: `hf-vit train [--recipe NAME] [--flag value ...]`, see `--help`.

In a clone `accelerate launch training/train.py`, and where the package is installed `accelerate launch -m
hf_vit.train`, do the same.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hf_vit import tasks
from hf_vit.config import parse_arguments
from hf_vit.errors import told
from hf_vit.extras import extra
from hf_vit.trainer.arguments import TrainingArguments
from hf_vit.unasked import unasked

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_vit.tasks.task import Task


def arguments_of(task: str) -> type[TrainingArguments]:
    """The class of a task's arguments, which its `arguments.py` defines.

    Raises:
        ValueError: there is no such task.
    """
    return tasks.class_of(task, "arguments", TrainingArguments)


def parse(argv: Sequence[str] | None = None) -> TrainingArguments:
    """The arguments of a run from a command line, `sys.argv[1:]` when None; see `config.parse_arguments`."""
    return parse_arguments(arguments_of, tasks.recipes(), argv)


def build_task(arguments: TrainingArguments) -> Task:
    """The task that `arguments` name, with its data and model loaded and checked."""
    from hf_vit.tasks.task import Task

    return tasks.class_of(arguments.run.task, "task", Task)(arguments)


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Accelerate's part of a run: devices, precision, accumulation and trackers.

    Raises:
        ValueError: the precision does not go with the device.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    from hf_vit.trainer.tracking import tracker_options

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


def main(argv: Sequence[str] | None = None) -> None:
    """Trains in this process, which is one of those that Accelerate's launcher has started."""
    arguments = parse(argv)  # before anything else is loaded: the help and errors need no more
    with extra("train"):
        from datasets import disable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        from hf_vit.trainer.budget import Budget
        from hf_vit.trainer.cpu import keep_freed_memory, use_all_cores
        from hf_vit.trainer.loop import TrainingLoop
        from hf_vit.trainer.output_dir import check_text_encoding, prepare_output_dir, unlock
        from hf_vit.trainer.plan import plan
        from hf_vit.trainer.rate_finder import find_learning_rate

    check_text_encoding()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_vit").setLevel(logging.INFO)
    disable_progress_bar()  # of saving and loading; the loop has its own
    disable_progress_bars()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # tells of tied weights at every checkpoint
    prepare_output_dir(
        Path(arguments.run.output_dir),
        overwrite=arguments.run.overwrite_output_dir,
        resume=arguments.checkpoint.resume_from_checkpoint is not None,
    )
    accelerator = build_accelerator(arguments)
    use_all_cores(accelerator, arguments.data.dataloader_num_workers)
    with accelerator.main_process_first(), unasked():
        task = build_task(arguments)
    budget = Budget(accelerator, task, arguments)
    if arguments.optimization.auto_batch_size:
        budget.fit_batch_size(accelerator)
    try:
        loop = TrainingLoop(accelerator, task, arguments, budget)
        accelerator.print(plan(loop), flush=True)
        if not arguments.run.dry_run:
            budget.check()
        if arguments.run.find_learning_rate and not arguments.run.dry_run:
            accelerator.print(find_learning_rate(loop))
        elif not arguments.run.dry_run:
            loop.train()
    finally:
        unlock()


def launch(argv: Sequence[str]) -> None:
    """Hands a command line of `hf-vit train` over to Accelerate's launcher.

    Options that Accelerate's launcher knows (`--config_file`, `--num_processes`, `--cpu`, ...) are its own, but for
    those that a run has as well (`--mixed_precision`); everything else is the run's, and wrong arguments are refused
    before anything is launched. Exits with the status of the run if that is not 0.
    """
    with extra("train"):
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    options = {
        flag: action.nargs == 0
        for action in parser._actions
        for flag in action.option_strings
        if action.dest not in ("help", "module", "no_python")
    }
    groups = {group for task in tasks.names() for group in arguments_of(task).group_types().values()}
    own = {field.name for group in groups for field in dataclasses.fields(group)}
    launcher, run = _split(argv, {flag: alone for flag, alone in options.items() if _name(flag) not in own})
    parse(run)
    previous = signal.signal(signal.SIGINT, lambda *_: None)  # the run has got it too, and saves before it ends
    try:
        launch_command(parser.parse_args([*launcher, "--module", __name__, *run]))
    except subprocess.CalledProcessError as error:
        sys.exit(_status(error.returncode))
    except ChildFailedError as error:
        sys.exit(_status(error.get_first_failure()[1].exitcode))
    finally:
        signal.signal(signal.SIGINT, previous)


def _status(code: int) -> int:
    """A process's exit status as a shell has it, of one that a signal ended too."""
    return code if code >= 0 else 128 - code


def _name(flag: str) -> str:
    return flag.lstrip("-").partition("=")[0].replace("-", "_")


def _split(argv: Sequence[str], options: dict[str, bool]) -> tuple[list[str], list[str]]:
    """The words that belong to `options`, flags that stand alone (True) or take one value, and the others."""
    chosen: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        flag, has_value, _ = word.partition("=")
        if flag not in options:
            others.append(word)
            continue
        chosen.append(word)
        if not has_value and not options[flag]:
            chosen += [value for value in [next(words, None)] if value is not None]
    return chosen, others


if __name__ == "__main__":
    with told():
        main()
