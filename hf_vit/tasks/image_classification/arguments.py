"""The arguments of image classification. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_vit.config import argument, check_range
from hf_vit.source_arguments import SourceArguments
from hf_vit.tasks.image_classification.augment import AugmentationArguments
from hf_vit.tasks.image_classification.distillation import DistillationArguments
from hf_vit.tasks.image_classification.imbalance import ImbalanceArguments
from hf_vit.tasks.image_classification.losses import LossArguments
from hf_vit.tasks.image_classification.models import ModelArguments
from hf_vit.tasks.image_classification.token_labels import TokenLabelArguments
from hf_vit.tasks.lora import LoraArguments
from hf_vit.trainer.arguments import TrainingArguments


@dataclass
class DataArguments(SourceArguments):
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "dataset_name": ("train_dir", "validation_dir", "test_dir"),
        "train_dir": ("dataset_name", "dataset_config_name", "dataset_revision"),
        "streaming": ("on_bad_sample",),
    }

    dataset_name: str | None = argument(
        None,
        help="A dataset of the Hub, a local folder (parquet, imagefolder, saved to disk), a table of images' files "
        "(CSV, TSV, JSON lines) or `sklearn_digits`.",
    )
    train_dir: str | None = argument(
        None,
        help="Instead of dataset_name: local folder of the training images, a folder for each class; or of splits, "
        "when its folders are named train, validation (valid, val, dev) and test alone.",
    )
    validation_dir: str | None = argument(None, help="Local folder of the validation images, likewise.")
    test_dir: str | None = argument(None, help="Local folder of the images that the result is measured on, likewise.")
    image_column_name: str | None = argument(None, help="Column of images; found by its type when not given.")
    label_column_name: str | None = argument(None, help="Column of labels; found by its type when not given.")
    token_label_column_name: str | None = argument(
        None,
        help="Label the patches of training images by this column: masks (images of class indices) or objects with "
        "bbox (x, y, width, height in pixels).",
    )
    class_names: list[str] | None = argument(
        None, help="Names of the classes in the order of their labels, where the data does not hold them."
    )
    num_folds: int | None = argument(
        None,
        help="Part the training images by class into so many folds, and validate on the one that --fold names; the "
        "data's own validation and test splits are not looked at.",
    )
    fold: int | None = argument(None, help="Number of the fold that is validated on, from 0.")
    keep_in_memory: bool = argument(
        False, help="Decode all images once, at the start, and keep them (3 bytes a pixel): for small data."
    )
    streaming: bool = argument(False, help="Read the training images as a stream of shards, without a copy on disk.")
    train_samples_per_epoch: int | None = argument(
        None, help="streaming: the length of an epoch; that of the training split where it is known."
    )
    shuffle_buffer_size: int = argument(1000, help="streaming: samples among which the next one is drawn.")
    on_bad_sample: str = argument(
        "error",
        help="At an image that cannot be decoded stop, or look at all images first and leave such ones out.",
        choices=("error", "skip"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_origin()
        if self.streaming and self.on_bad_sample == "skip":
            raise ValueError("--on_bad_sample skip looks at all images first, which --streaming cannot")
        if self.streaming and self.max_train_samples is not None:
            raise ValueError("--max_train_samples does not go with --streaming: give --train_samples_per_epoch")
        if self.streaming and self.keep_in_memory:
            raise ValueError("--keep_in_memory holds all images, --streaming only those under way: give one of them")
        if (self.num_folds is None) != (self.fold is None):
            raise ValueError("--num_folds and --fold go together")
        if self.num_folds is not None and self.fold is not None:
            check_range("num_folds", self.num_folds, 2)
            check_range("fold", self.fold, 0, self.num_folds - 1)
            if self.streaming:
                raise ValueError("--num_folds parts all images at the start, which --streaming cannot")
        check_range("train_samples_per_epoch", self.train_samples_per_epoch, 1)
        check_range("shuffle_buffer_size", self.shuffle_buffer_size, 1)

    def _check_origin(self) -> None:
        if (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError("give either --dataset_name or --train_dir")
        for split in ("validation", "test"):
            if getattr(self, f"{split}_dir") is not None and self.train_dir is None:
                raise ValueError(f"--{split}_dir goes with --train_dir")

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each split that has one of its own."""
        found = {"train": self.train_dir, "validation": self.validation_dir, "test": self.test_dir}
        return {split: folder for split, folder in found.items() if folder is not None}


@dataclass
class ScoredDataArguments(DataArguments):
    """The same for one split, which needs no others."""

    def _check_origin(self) -> None:
        if (self.dataset_name is None) == (not self.folders):
            raise ValueError("give either --dataset_name or a folder, such as --test_dir")


# By whether an image has several labels.
_METRICS = {
    False: ("accuracy", "balanced_accuracy", "f1_macro", "loss"),
    True: ("mean_average_precision", "f1_macro", "f1_micro", "loss"),
}


@dataclass
class EvaluationArguments:
    _argument_group_name: ClassVar[str] = "Evaluation"

    metric_for_best_model: str | None = argument(
        None,
        help="Decides which checkpoint is the best: accuracy, or mean_average_precision of several labels an image, "
        "when not given; balanced_accuracy is the mean recall of the classes.",
        choices=("accuracy", "balanced_accuracy", "f1_macro", "f1_micro", "mean_average_precision", "loss"),
    )

    temperature_scaling: bool = argument(
        False,
        help="Store a temperature in the config that, dividing the logits, makes probabilities as large as the model "
        "is often right; fitted on the validation split, applied by `score.py --apply_temperature`.",
    )

    baseline: str = argument(
        "auto",
        help="Say what nearest neighbours and a linear probe of the frozen start reach, before it is trained and "
        "beside the result: of checkpoints and up to 10,000 images by itself, else where it is asked for.",
        choices=("auto", "yes", "no"),
        nargs="?",
        const="yes",
    )

    def best(self, is_multi_label: bool) -> tuple[str, Literal["max", "min"]]:
        """The metric and whether its largest or its smallest value is the best.

        Raises:
            ValueError: it is not measured of such labels.
        """
        allowed = _METRICS[is_multi_label]
        name = self.metric_for_best_model or allowed[0]
        if name not in allowed:
            labels = "several labels an image" if is_multi_label else "one label an image"
            raise ValueError(f"--metric_for_best_model of {labels} is one of {', '.join(allowed)}, found {name!r}")
        return name, "min" if name == "loss" else "max"


@dataclass
class ClassOrderArguments:
    _argument_group_name: ClassVar[str] = "Classes"

    class_order: str = argument(
        "name",
        help="Match the model's classes to the data's by their names, or take them in the same order where names are "
        "spelled otherwise.",
        choices=("name", "index"),
    )


@dataclass
class TestTimeArguments:
    __test__: ClassVar[bool] = False  # for pytest
    _argument_group_name: ClassVar[str] = "Test time"

    apply_temperature: bool = argument(False, help="Divide the logits by the temperature in the model's config.")
    test_time_augmentation: str | None = argument(
        None,
        help="Average the probabilities of each image and its mirror image, of its centre and corners when it is "
        "enlarged by an eighth, or of these and their mirror images.",
        choices=("flip", "five_crop", "ten_crop"),
    )
    top_losses: int = argument(
        0, help="Write a page, top_losses.html, of so many images of the highest loss and so many suspect labels."
    )

    def __post_init__(self) -> None:
        check_range("top_losses", self.top_losses, 0)


@dataclass(kw_only=True)
class ImageClassificationArguments(TrainingArguments):
    data: DataArguments
    model: ModelArguments
    augmentation: AugmentationArguments
    loss: LossArguments
    imbalance: ImbalanceArguments
    evaluation: EvaluationArguments
    distillation: DistillationArguments
    token_labels: TokenLabelArguments
    lora: LoraArguments

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.lora_r is not None and self.model.model_name_or_path is None:
            raise ValueError("--lora_r adapts a checkpoint: give --model_name_or_path")
        if self.lora.lora_r is not None and self.model.train_only is not None:
            raise ValueError("--lora_r and --train_only both say what is trained: give one of them")
        if self.evaluation.baseline == "yes" and (self.loss.is_multi_label or self.data.streaming):
            raise ValueError("--baseline is of one label an image, and goes with no --streaming")
