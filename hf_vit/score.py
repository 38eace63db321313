"""Scores a saved or published model: `python training/score.py --model_name_or_path M --dataset_name D`."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from accelerate import Accelerator
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

import hf_vit  # noqa: F401  registers our models
from hf_vit import tasks
from hf_vit.config import RunArguments, argument, check_range, parse_groups
from hf_vit.errors import told
from hf_vit.files import check_model_source, read_object, write_atomically
from hf_vit.fingerprint import check_fingerprint
from hf_vit.record import PREDICTIONS_FILE, RUN_FILE
from hf_vit.tasks.task import Assessment, Task
from hf_vit.trainer.evaluation import evaluate
from hf_vit.trainer.loaders import prepare_evaluation_loader
from hf_vit.trainer.output_dir import prepare_output_dir
from hf_vit.trainer.run_record import environment, write_predictions
from hf_vit.unasked import unasked
from hf_vit.words import counted

logger = logging.getLogger(__name__)

SCORE_FILE = "score.json"


@dataclass
class ScoreArguments:
    _argument_group_name: ClassVar[str] = "Score"

    model_name_or_path: str = argument(None, help="The model: a folder or a name of the Hub.")
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    trust_remote_code: bool = argument(False, help="Allow the code that the model brings along.")
    task: str | None = argument(
        None, help="What the model does; as its run's record says, else its config, when not given."
    )
    split: str = argument("test", help="The split to score on.")
    predictions: bool = argument(False, help=f"Write what the model made of each sample into {PREDICTIONS_FILE}.")
    output_dir: str | None = argument(None, help="Where score.json and figures go; outputs/score-MODEL by default.")
    overwrite_output_dir: bool = argument(False, help="Replace what output_dir holds.")
    per_device_eval_batch_size: int = argument(64, help="Samples of one process in one batch.")
    mixed_precision: str | None = argument(None, help="Precision.", choices=["no", "bf16", "fp16"])

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is required")
        check_range("per_device_eval_batch_size", self.per_device_eval_batch_size, 1)
        if self.output_dir is None:
            self.output_dir = str(Path("outputs") / f"score-{Path(self.model_name_or_path).name}")


def score(assessment: Assessment, accelerator: Accelerator, arguments: ScoreArguments, unit: str) -> dict[str, Any]:
    """The result of a model on a split, in the form of a run record's."""
    model = accelerator.prepare_model(assessment.model.eval(), evaluation_mode=True)
    loader = prepare_evaluation_loader(accelerator, assessment.loader)
    started = time.perf_counter()
    metrics, num_examples = evaluate(accelerator, model, loader, assessment.evaluator)
    duration = time.perf_counter() - started
    return {
        "split": arguments.split,
        "num_examples": num_examples,
        "metrics": metrics,
        "duration_s": duration,
        f"{unit}_per_second": num_examples / duration,
    }


def _task_of(command: list[str]) -> type[Task]:
    """The task that is named, or that a folder's record names, or that the model is for: one that writes texts is a
    translator, unless it reads images; any other classifies images."""
    name, folder = _flag(command, "task"), _flag(command, "model_name_or_path")
    record = Path(folder or "", RUN_FILE)
    if name is None and folder and record.is_file():
        name = read_object(record).get("task")
    elif name is None and folder:
        check_model_source("--model_name_or_path", folder)
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=_flag(command, "model_revision"))
        if config.get("is_encoder_decoder"):
            name = "image_to_text" if "vision_config" in config else "translation"
    return tasks.class_of(name or RunArguments.task, "task", Task)


def _flag(command: list[str], name: str) -> str | None:
    """The value of a flag on a command line whose other flags depend on it."""
    for position, word in enumerate(command):
        flag, has_value, value = word.partition("=")
        if flag in (f"--{name}", f"--{name.replace('_', '-')}"):
            return value if has_value else next(iter(command[position + 1 :]), None)
    return None


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Writes score.json, figures and predictions into the output folder, and returns what score.json holds."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    disable_progress_bar()
    command = sys.argv[1:] if argv is None else argv
    task = _task_of(command)
    groups = {"score": ScoreArguments, **task.scoring_groups}
    parsed = parse_groups(list(groups.values()), command, "Scores a model.")
    given = SimpleNamespace(**dict(zip(groups, parsed)))
    arguments, folder = given.score, Path(given.score.output_dir)
    prepare_output_dir(folder, overwrite=arguments.overwrite_output_dir, resume=False)
    check_fingerprint(arguments.model_name_or_path)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    with unasked():
        assessment = task.assess(given)
    result = score(assessment, accelerator, arguments, task.sample_unit)
    record = {
        "task": task.name,
        "model": {"name": arguments.model_name_or_path, "revision": arguments.model_revision},
        "command": shlex.join([*_program(), *command]),
        **environment(accelerator),
        "data": assessment.data,
        "result": result,
    }
    if accelerator.is_main_process:
        _write(folder, record, assessment, predictions=arguments.predictions)
        unit = task.sample_unit
        logger.info(
            f"{result['split']} {assessment.evaluator.headline(result['metrics'])} on "
            f"{counted(result['num_examples'], unit)}, {result[f'{unit}_per_second']:,.0f} {unit}/s; "
            f"{SCORE_FILE} is in {folder}"
        )
    return record


def _program() -> list[str]:
    """Words that start a scoring as this one was: those of an installed package, or of a clone."""
    return ["hf-vit", "score"] if sys.argv[0] == "hf-vit score" else ["python", "training/score.py"]


def _write(folder: Path, record: dict[str, Any], assessment: Assessment, *, predictions: bool) -> None:
    for name, picture in assessment.figures(record["result"]["metrics"]).items():
        write_atomically(folder / name, picture)
    if predictions:
        write_predictions(assessment.evaluator, folder)
    write_atomically(folder / SCORE_FILE, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    with told():
        main()
