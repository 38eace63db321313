"""Image segmentation: images with masks, a query for each segment of things and stuff (arXiv 2107.06278), panoptic
quality and COCO's average precision of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoModelForImageSegmentation, PreTrainedModel

from hf_vit import HfDetrForSegmentation
from hf_vit.tasks.image_segmentation.arguments import ImageSegmentationArguments
from hf_vit.tasks.image_segmentation.evaluation import SegmentationEvaluator
from hf_vit.tasks.object_detection.data import AnnotatedData
from hf_vit.tasks.object_detection.task import ObjectDetection


class ImageSegmentation(ObjectDetection):
    """The task `image_segmentation`."""

    name = "image_segmentation"
    has_forecast = False  # the mask head has no closed forms
    auto_class: ClassVar[Any] = AutoModelForImageSegmentation
    model_class: ClassVar[type[PreTrainedModel]] = HfDetrForSegmentation
    with_masks: ClassVar[bool] = True
    arguments: ImageSegmentationArguments

    def __init__(self, arguments: ImageSegmentationArguments):
        super().__init__(arguments)
        metric, _ = self.best
        if metric.startswith("ap") and not any(self.data.checked.is_thing):
            raise ValueError(
                f"--metric_for_best_model {metric} is that of things, and all classes of the data are stuff; take pq"
            )

    def evaluator(self, split: str, *, final: bool) -> SegmentationEvaluator:
        num_samples = self.arguments.data.card_num_samples if final else 0
        return SegmentationEvaluator(self.data, split, self.processor, final=final, num_samples=num_samples)

    @classmethod
    def scorer(cls, data: AnnotatedData, split: str, processor: Any) -> SegmentationEvaluator:
        return SegmentationEvaluator(data, split, processor, final=True)

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import pipeline\n"
            f'segmenter = pipeline("image-segmentation", model="{folder}", trust_remote_code=True)'
        )
