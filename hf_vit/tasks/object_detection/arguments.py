"""The arguments of object detection. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import Options, argument, check_range
from hf_vit.source_arguments import SourceArguments
from hf_vit.trainer.arguments import TrainingArguments
from hf_vit.vision.object_augmentation import ObjectAugmentationArguments


@dataclass
class ObjectDataArguments(SourceArguments):
    dataset_name: str | None = argument(
        None,
        help="A folder with COCO's, Roboflow's, YOLO's or Pascal VOC's annotations, a dataset with a column "
        "`objects`, or drawn here: `shapes` with boxes, `scenes` with masks of things and stuff.",
    )
    image_column_name: str | None = argument(None, help="Column of images of a dataset; found when not given.")
    box_format: str = argument(
        "coco",
        help="Boxes of a dataset's column: x, y, width, height; left, top, right, bottom; or centre and size in parts "
        "of the image.",
        choices=("coco", "pascal_voc", "yolo"),
    )
    class_names: list[str] | None = argument(
        None, help="Names of the categories in the order of their numbers, where a dataset does not hold them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset_name is None:
            raise ValueError("--dataset_name is required: a folder with images and annotations")


@dataclass
class DetectorArguments:
    _argument_group_name: ClassVar[str] = "Model"
    # What a recipe says of another architecture does not fit the one that is named instead.
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "model_name_or_path": ("backbone_name_or_path", "backbone_overrides", "config_overrides", "image_size"),
        "backbone_name_or_path": ("backbone_overrides", "model_name_or_path"),
    }

    model_name_or_path: str | None = argument(None, help="Start from this detector, a folder or an id of the Hub.")
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    trust_remote_code: bool = argument(False, help="Allow the code that a checkpoint brings along.")
    backbone_name_or_path: str | None = argument(
        None, help="Start the backbone from this model, which AutoBackbone loads: a ViT trained here, one of the Hub."
    )
    backbone_overrides: Options = argument(
        Options, help="From scratch: fields of the backbone's config, a Vision Transformer: a=b,c=d or JSON."
    )
    config_overrides: Options = argument(Options, help="Fields of the detector's config: a=b,c=d or JSON.")
    image_size: list[int] | None = argument(
        None, help="Height and width of the canvas; of the median aspect of the images, 384 pixels long, by default."
    )
    letterbox: bool = argument(False, help="Keep the aspect of each image and pad it, instead of squeezing it.")
    image_mean: list[float] = argument(lambda: [0.5, 0.5, 0.5], help="Mean per channel, of pixels in [0, 1].")
    image_std: list[float] = argument(lambda: [0.5, 0.5, 0.5], help="Standard deviation per channel.")
    backbone_learning_rate_factor: float = argument(
        1.0, help="The backbone's learning rate as a part of the run's; smaller where it was trained before."
    )
    gradient_checkpointing: bool = argument(False, help="Recompute activations to save memory.")

    def __post_init__(self) -> None:
        check_range("backbone_learning_rate_factor", self.backbone_learning_rate_factor, 0)
        if self.image_size is not None and len(self.image_size) > 2:
            raise ValueError(f"--image_size takes one or two numbers, found {self.image_size}")
        for side in self.image_size or []:
            check_range("image_size", side, 1)
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"--{name} takes one number per channel (3), found {getattr(self, name)}")
        for value in self.image_std:
            check_range("image_std", value, 0, open_low=True)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width)."""
        return None if self.image_size is None else (self.image_size[0], self.image_size[-1])


@dataclass
class DetectionEvaluationArguments:
    _argument_group_name: ClassVar[str] = "Evaluation"

    metric_for_best_model: str = argument(
        "ap", help="Decides which checkpoint is the best.", choices=("ap", "ap50", "ap75", "loss")
    )


@dataclass(kw_only=True)
class ObjectDetectionArguments(TrainingArguments):
    data: ObjectDataArguments
    model: DetectorArguments
    augmentation: ObjectAugmentationArguments
    evaluation: DetectionEvaluationArguments
