"""Object detection: images with boxes, set prediction (arXiv 2005.12872), COCO's average precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForObjectDetection, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfDetrForObjectDetection
from hf_vit.tasks.object_detection.arguments import ObjectDataArguments, ObjectDetectionArguments
from hf_vit.tasks.object_detection.data import (
    AnnotatedData,
    load_annotated_split,
    load_annotated_splits,
)
from hf_vit.tasks.object_detection.evaluation import DetectionEvaluator
from hf_vit.tasks.object_detection.models import build_detector, build_processor, canvas_of, mask_stride, patch_side
from hf_vit.tasks.task import Assessment, Batch, StepOutput, Task, data_loader
from hf_vit.trainer.optim import OptimizationArguments
from hf_vit.trainer.sampler import EpochBatchSampler
from hf_vit.vision.processors import normalize
from hf_vit.vision.targets import ObjectViews, collate


class ObjectDetection(Task):
    """The task `object_detection`."""

    name = "object_detection"
    has_forecast = True
    scoring_groups: ClassVar = {"data": ObjectDataArguments}
    sample_unit = "images"
    auto_class: ClassVar[Any] = AutoModelForObjectDetection
    model_class: ClassVar[type[PreTrainedModel]] = HfDetrForObjectDetection
    with_masks: ClassVar[bool] = False
    arguments: ObjectDetectionArguments
    data: AnnotatedData

    def __init__(self, arguments: ObjectDetectionArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        metric = arguments.evaluation.metric_for_best_model
        self.best = (metric, "min" if metric == "loss" else "max")
        self.data = load_annotated_splits(arguments.data, self.seed, needs_masks=self.with_masks)
        canvas = canvas_of(arguments.model, self.data)
        set_seed(self.seed)
        self.model = build_detector(arguments.model, canvas, self.data, self.model_class)
        self.processor = build_processor(arguments.model, canvas, self.model.config)

    def plan_rows(self) -> dict[str, str]:
        rows = {"objects": ". ".join(self.data.summary())}
        height, width = self.processor.size["height"], self.processor.size["width"]
        rows["canvas"] = (
            f"{height} x {width} pixels, {'padded' if self.processor.crop_mode == 'border' else 'stretched'}"
        )
        num_queries = self.model.config.num_queries
        crowded = sum(len(objects["bbox"]) > num_queries for objects in self.data.splits["train"]["objects"])
        if crowded:
            rows["queries"] = f"{num_queries}, fewer than the objects of {crowded:,} training images, which lose some"
        return rows

    def _views(self, split: str, *, train: bool) -> ObjectViews:
        return ObjectViews(
            self.data.splits[split],
            self.processor,
            has_masks=self.with_masks,
            augmentation=self.arguments.augmentation if train else None,
            seed=self.seed,
            multiple_of=patch_side(self.arguments.model),
            mask_stride=mask_stride(self.model.config),
        )

    def train_loader(self, batches_per_step: int) -> DataLoader:
        views = self._views("train", train=True)
        size = self.arguments.optimization.per_device_train_batch_size
        sampler = EpochBatchSampler(len(views), size, batches_per_step, seed=self.seed)
        return data_loader(views, self.arguments.data, batch_sampler=sampler, collate_fn=collate)

    def evaluation_loader(self, split: str) -> DataLoader:
        size = self.arguments.optimization.per_device_eval_batch_size
        views = self._views(split, train=False)
        return data_loader(views, self.arguments.data, batch_size=size, collate_fn=collate)

    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        pixels = normalize(batch["pixel_values"], self.processor)
        outputs = model(pixel_values=pixels, labels=batch["labels"])
        return StepOutput(outputs.loss, {name: value.detach() for name, value in outputs.loss_dict.items()})

    def evaluator(self, split: str, *, final: bool) -> DetectionEvaluator:
        num_samples = self.arguments.data.card_num_samples if final else 0
        return DetectionEvaluator(self.data, split, self.processor, final=final, num_samples=num_samples)

    def parameter_groups(self, optimization: OptimizationArguments, learning_rate: float) -> list[dict[str, Any]]:
        """The backbone's parameters at their own rate."""
        groups = super().parameter_groups(optimization, learning_rate)
        factor = self.arguments.model.backbone_learning_rate_factor
        if factor == 1:
            return groups
        body: Any = self.model.base_model
        own = {id(parameter) for parameter in body.backbone.parameters()}
        found = []
        for group in groups:
            for is_backbone in (False, True):
                chosen = [each for each in group["params"] if (id(each) in own) == is_backbone]
                if chosen:
                    rate = group["lr"] * (factor if is_backbone else 1)
                    found.append({**group, "params": chosen, "lr": rate})
        return found

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        score = arguments.score
        origin = {"revision": score.model_revision, "trust_remote_code": score.trust_remote_code}
        model = cls.auto_class.from_pretrained(score.model_name_or_path, **origin)
        processor = AutoImageProcessor.from_pretrained(score.model_name_or_path, **origin)
        class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        data = load_annotated_split(arguments.data, score.split, class_names, needs_masks=cls.with_masks)
        evaluator = cls.scorer(data, score.split, processor)
        stride = mask_stride(model.config)
        views = ObjectViews(data.splits[score.split], processor, has_masks=cls.with_masks, mask_stride=stride)
        loader = data_loader(views, arguments.data, batch_size=score.per_device_eval_batch_size, collate_fn=collate)

        def files(metrics: Mapping[str, Any]) -> dict[str, bytes]:
            return {"coco_results.json": json.dumps(evaluator.coco_results()).encode()}

        return Assessment(model, loader, evaluator, data.describe(), files)

    @classmethod
    def scorer(cls, data: AnnotatedData, split: str, processor: Any) -> DetectionEvaluator:
        """The evaluator of a saved model."""
        return DetectionEvaluator(data, split, processor, final=True)

    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code and the processor."""
        model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import pipeline\n"
            f'detector = pipeline("object-detection", model="{folder}", trust_remote_code=True)'
        )
