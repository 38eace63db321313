"""The arguments of image segmentation. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass

from hf_vit.config import argument
from hf_vit.tasks.object_detection.arguments import DetectionEvaluationArguments, ObjectDetectionArguments


@dataclass
class SegmentationEvaluationArguments(DetectionEvaluationArguments):
    metric_for_best_model: str = argument(
        "pq", help="Decides which checkpoint is the best.", choices=("pq", "ap", "ap50", "ap75", "loss")
    )


@dataclass(kw_only=True)
class ImageSegmentationArguments(ObjectDetectionArguments):
    evaluation: SegmentationEvaluationArguments
