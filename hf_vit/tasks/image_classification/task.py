"""Image classification: labelled images, any AutoModelForImageClassification, cross entropy, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from hf_vit import HfViTConfig
from hf_vit.models.losses import distilled_loss
from hf_vit.tasks.image_classification.arguments import ImageClassificationArguments
from hf_vit.tasks.image_classification.augment import (
    BatchMix,
    EvaluationTransform,
    TrainTransform,
    normalize,
)
from hf_vit.tasks.image_classification.data import ImageView, class_mapping, load_labelled_images
from hf_vit.tasks.image_classification.distillation import TeacherEnsemble
from hf_vit.tasks.image_classification.losses import ClassificationLoss
from hf_vit.tasks.image_classification.metrics import classification_metrics, head_logits, output_statistics
from hf_vit.tasks.image_classification.models import build_model, build_processor
from hf_vit.tasks.image_classification.streaming import ImageStream, load_streamed_images
from hf_vit.tasks.image_classification.teacher_cache import cached_logits
from hf_vit.tasks.task import Task
from hf_vit.trainer.sampler import EpochBatchSampler
from hf_vit.vision.decoding import decode

MAX_SAMPLE_SIDE = 512  # pixels; a camera's photos would weigh tens of MB each as PNG


class ImageClassification(Task):
    """The task `image_classification`; `training.loop` says what a task offers."""

    name = "image_classification"
    sample_unit = "images"
    best_metric = "accuracy"

    def __init__(self, arguments: ImageClassificationArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        if arguments.data.streaming:
            self.data = load_streamed_images(arguments.data)
        else:
            self.data = load_labelled_images(arguments.data, self.seed)
        set_seed(self.seed)
        self.model = build_model(arguments.model, class_mapping(self.data.class_names))
        self.processor = build_processor(arguments.model, self.model)
        self.mix = BatchMix(arguments.augmentation, len(self.data.class_names), self.seed)
        self.label_loss = ClassificationLoss(arguments.loss)
        self.teachers = None
        self.teacher_logits = None
        if arguments.distillation.teacher:
            self.teachers = TeacherEnsemble(arguments.distillation, self.data.class_names)
            if self.model.config.model_type == HfViTConfig.model_type:
                for name in ("distillation_type", "distillation_alpha", "distillation_temperature"):
                    setattr(self.model.config, name, getattr(arguments.distillation, name))
            if arguments.distillation.teacher_cache_dir is not None:
                self.teacher_logits = self._cached_teacher_logits()

    @property
    def _train_transform(self) -> TrainTransform:
        return TrainTransform(self.arguments.augmentation, self.processor, self.seed)

    def _views(self, split: str, transform: TrainTransform | EvaluationTransform) -> ImageView:
        return ImageView(self.data.splits[split], transform, keep_in_memory=self.arguments.data.keep_in_memory)

    def _cached_teacher_logits(self) -> torch.Tensor | None:
        if self.arguments.data.streaming:
            raise ValueError("--teacher_cache_dir does not go with --streaming: a stream's samples have no number")
        random_parts = self.arguments.augmentation.random_parts
        if random_parts:
            raise ValueError(
                f"--teacher_cache_dir wants views that never change, but --{random_parts[0]} changes them"
            )
        if self.arguments.run.dry_run:
            return None
        described = self.data.describe()["splits"]["train"]["fingerprint"]
        return cached_logits(
            self.teachers.to(PartialState().device),
            ImageView(self.data.splits["train"], self._train_transform),
            Path(self.arguments.distillation.teacher_cache_dir),
            {"train": described, "processor": self.processor.to_dict()},
            {
                "batch_size": self.arguments.optimization.per_device_eval_batch_size,
                "num_workers": self.arguments.data.dataloader_num_workers,
            },
        )

    def train_loader(self, batches_per_step: int) -> DataLoader:
        """Batches for all processes in order, or of this process from a stream."""
        if self.arguments.data.streaming:
            return self._stream_loader(batches_per_step)
        sampler = EpochBatchSampler(
            len(self.data.splits["train"]),
            self.arguments.optimization.per_device_train_batch_size,
            batches_per_step,
            num_repeats=self.arguments.augmentation.repeated_augmentation,
            seed=self.seed,
        )
        views = self._views("train", self._train_transform)
        return self.data_loader(views, batch_sampler=sampler)

    def _stream_loader(self, batches_per_step: int) -> DataLoader:
        if self.arguments.augmentation.repeated_augmentation > 1:
            raise ValueError("--repeated_augmentation does not go with --streaming, which shows each sample once")
        batch_size = self.arguments.optimization.per_device_train_batch_size
        stream = ImageStream(
            self.data.stream,
            self.data.class_index,
            self._train_transform,
            samples_per_epoch=self.data.samples_per_epoch,
            batch_size=batch_size,
            batches_per_step=batches_per_step,
            buffer_size=self.arguments.data.shuffle_buffer_size,
            seed=self.seed,
        )
        workers = min(self.arguments.data.dataloader_num_workers, stream.max_workers)
        # Workers that stayed would not hear of the next epoch.
        return self.data_loader(stream, batch_size=batch_size, num_workers=workers, persistent_workers=False)

    def evaluation_loader(self, split: str) -> DataLoader:
        batch_size = self.arguments.optimization.per_device_eval_batch_size
        views = self._views(split, EvaluationTransform(self.processor))
        return self.data_loader(views, batch_size=batch_size)

    def training_step(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """`loss`, a scalar, and the model's `outputs`."""
        pixels, targets = batch["pixel_values"], batch["labels"]
        if self.mix.mixes:
            pixels, targets = self.mix(pixels, targets, batch["sample_key"][0])
        outputs = model(pixel_values=normalize(pixels, self.processor))
        if self.teachers is None:
            return {"loss": self.label_loss(outputs.logits, targets), "outputs": outputs}
        if self.teacher_logits is not None:
            teacher_logits = self.teacher_logits[batch["sample_key"][:, 1].cpu()].to(pixels.device)
        else:
            teacher_logits = self.teachers.to(pixels.device)(pixels.float())
        heads = head_logits(outputs)
        loss = distilled_loss(
            outputs.logits,
            heads.get("class"),
            heads.get("distillation"),
            targets,
            teacher_logits,
            self.arguments.distillation,
            self.label_loss,
        )
        return {"loss": loss, "outputs": outputs}

    def evaluation_step(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], *, detailed: bool = False
    ) -> dict[str, torch.Tensor]:
        """What `compute_metrics` needs of each sample, first dimension B."""
        outputs = model(pixel_values=normalize(batch["pixel_values"], self.processor))
        statistics = {**output_statistics(outputs, batch["labels"]), "index": batch["sample_key"][:, 1]}
        if detailed and self.teachers is not None:
            teachers, pixels = self.teachers.to(model.device).teachers, batch["pixel_values"].float()
            right = [teacher(pixels).argmax(-1) == batch["labels"] for teacher in teachers]
            statistics["teachers_right"] = torch.stack(right, dim=1)  # (B, teachers)
        return statistics

    def compute_metrics(self, gathered: dict[str, np.ndarray], *, detailed: bool) -> dict[str, Any]:
        metrics = classification_metrics(gathered, self.data.class_names, detailed=detailed)
        if "teachers_right" in gathered:
            metrics["teacher_accuracy"] = gathered["teachers_right"].mean(0).tolist()
        return metrics

    def closing_records(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The teachers, with what each reaches on the split of the result."""
        if self.teachers is None:
            return {}
        accuracies = metrics.pop("teacher_accuracy")
        return {"teachers": [{**who, "accuracy": value} for who, value in zip(self.teachers.describe(), accuracies)]}

    def save_pretrained(self, model: torch.nn.Module, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code and the processor."""
        model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)

    def save_samples(self, gathered: dict[str, np.ndarray], split: str, folder: Path) -> list[dict[str, Any]]:
        """Images of an evaluated split as PNG, large ones made smaller, with what the model made of them: up to half
        are mistakes, which come last, each kind evenly spaced over the split."""
        names, samples = self.data.class_names, []
        right = gathered["ranked"][:, 0] == gathered["labels"]
        count = min(self.arguments.data.card_num_samples, len(right))
        num_wrong = min(max(count // 2, count - int(right.sum())), int((~right).sum()))
        rows = [*spaced(np.flatnonzero(right), count - num_wrong), *spaced(np.flatnonzero(~right), num_wrong)]
        for number, row in enumerate(rows):
            index = int(gathered["index"][row])
            image = self.data.splits[split][index]["image"]
            picture = decode(image, index)
            picture.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
            picture.save(folder / f"sample_{number}.png")
            samples.append(
                {
                    "file": f"sample_{number}.png",
                    "label": names[gathered["labels"][row]],
                    "prediction": names[gathered["ranked"][row, 0]],
                    "score": float(gathered["confidence"][row]),
                }
            )
        return samples

    def loading_lines(self, folder: Path) -> str:
        """The lines of Python that load what `save_pretrained` wrote."""
        return (
            "from transformers import pipeline\n"
            f'classifier = pipeline("image-classification", model="{folder}", trust_remote_code=True)'
        )


def spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows, evenly spaced."""
    return rows[np.linspace(0, max(len(rows) - 1, 0), count).astype(int)] if count else rows[:0]
