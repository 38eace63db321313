"""Scores a saved or published classifier: `python training/score.py --model_name_or_path M --dataset_name D`."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

import hf_vit  # noqa: F401  registers our models
from hf_vit.config import argument, check_range, parse_groups
from hf_vit.files import write_atomically
from hf_vit.tasks.image_classification import figures
from hf_vit.tasks.image_classification.augment import EvaluationTransform, normalize
from hf_vit.tasks.image_classification.data import DataArguments, ImageView, LabelledImages, load_labelled_split
from hf_vit.tasks.image_classification.metrics import classification_metrics, output_statistics
from hf_vit.trainer.checkpoint import prepare_output_dir
from hf_vit.trainer.evaluation import gather_predictions
from hf_vit.trainer.run_record import environment
from hf_vit.vision.processors import InputFormat

logger = logging.getLogger(__name__)

SCORE_FILE = "score.json"


@dataclass
class ScoreArguments:
    _argument_group_name: ClassVar[str] = "Score"

    model_name_or_path: str = argument(None, help="The classifier: a folder or a model of the Hub.")
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    trust_remote_code: bool = argument(False, help="Allow the code that the model brings along.")
    split: str = argument("test", help="The split to score on.")
    class_order: str = argument(
        "name",
        help="Match the model's classes to the data's by their names, or take them in the same order where names are "
        "spelled otherwise.",
        choices=("name", "index"),
    )
    output_dir: str | None = argument(None, help="Where score.json and figures go; outputs/score-MODEL by default.")
    overwrite_output_dir: bool = argument(False, help="Replace what output_dir holds.")
    per_device_eval_batch_size: int = argument(64, help="Images of one process in one batch.")
    mixed_precision: str | None = argument(None, help="Precision.", choices=["no", "bf16", "fp16"])

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is required")
        check_range("per_device_eval_batch_size", self.per_device_eval_batch_size, 1)
        if self.output_dir is None:
            self.output_dir = str(Path("outputs") / f"score-{Path(self.model_name_or_path).name}")


def score(
    arguments: ScoreArguments, data_arguments: DataArguments, accelerator: Accelerator
) -> tuple[dict[str, Any], LabelledImages]:
    """The result of a model on a split, in the form of a run record's, and the data.

    The images go through the model's own processor.

    Raises:
        ValueError: the data has classes that the model does not know, or as many as it does not have.
    """
    options = {"revision": arguments.model_revision, "trust_remote_code": arguments.trust_remote_code}
    model = AutoModelForImageClassification.from_pretrained(arguments.model_name_or_path, **options)
    processor = AutoImageProcessor.from_pretrained(arguments.model_name_or_path, **options)
    # Timm's, for one; and EfficientNet's takes a step after the normalization.
    if not isinstance(processor, TorchvisionBackend) or getattr(processor, "include_top", False):
        processor = InputFormat.of(processor).processor()
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    data = _load(data_arguments, arguments, class_names)
    loader = DataLoader(
        ImageView(data.splits[arguments.split], EvaluationTransform(processor)),
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=data_arguments.dataloader_num_workers,
        prefetch_factor=data_arguments.dataloader_prefetch_factor,
    )
    model, loader = accelerator.prepare(model.eval(), loader)

    def step(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return output_statistics(model(pixel_values=normalize(batch["pixel_values"], processor)), batch["labels"])

    started = time.perf_counter()
    gathered = gather_predictions(accelerator, loader, step)
    duration, num_examples = time.perf_counter() - started, len(gathered["labels"])
    return {
        "split": arguments.split,
        "num_examples": num_examples,
        "metrics": classification_metrics(gathered, data.class_names, detailed=True),
        "duration_s": duration,
        "images_per_second": num_examples / duration,
    }, data


def _load(data_arguments: DataArguments, arguments: ScoreArguments, class_names: list[str]) -> LabelledImages:
    """The split, its labels as the model's indices."""
    if arguments.class_order == "index":
        data = load_labelled_split(data_arguments, arguments.split, None)
        if len(data.class_names) != len(class_names):
            raise ValueError(
                f"--class_order index: the data has {len(data.class_names)} classes, the model {len(class_names)}"
            )
        return data
    if len(set(class_names)) < len(class_names):
        raise ValueError("the model has classes of the same name: --class_order index")
    return load_labelled_split(data_arguments, arguments.split, class_names)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Writes score.json and figures into the output folder, and returns what score.json holds."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    disable_progress_bar()
    command = sys.argv[1:] if argv is None else argv
    arguments, data_arguments = parse_groups([ScoreArguments, DataArguments], command, "Scores an image classifier.")
    folder = Path(arguments.output_dir)
    prepare_output_dir(folder, overwrite=arguments.overwrite_output_dir, resume=False)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    result, data = score(arguments, data_arguments, accelerator)
    record = {
        "model": {"name": arguments.model_name_or_path, "revision": arguments.model_revision},
        "command": " ".join(["python training/score.py", *command]),
        **environment(accelerator),
        "data": data.describe(),
        "result": result,
    }
    if accelerator.is_main_process:
        metrics = result["metrics"]
        facts = SimpleNamespace(class_names=data.class_names, **{name: metrics[name] for name in _DRAWN})
        for name, draw in _FIGURES.items():
            image = draw(facts)
            if image is not None:
                write_atomically(folder / name, image)
        write_atomically(folder / SCORE_FILE, (json.dumps(record, indent=1) + "\n").encode())
        logger.info(
            f"{result['split']} accuracy {metrics['accuracy']:.2%} on {result['num_examples']} images, "
            f"{result['images_per_second']:,.0f} images/s; {SCORE_FILE} and figures are in {folder}"
        )
    return record


_DRAWN = ("confusion_matrix", "calibration")
_FIGURES = {"confusion_matrix.png": figures.confusion_matrix, "reliability.png": figures.reliability_diagram}

if __name__ == "__main__":
    main()
