"""Digit rotation: by how many degrees was a handwritten digit turned?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.tasks.task import Assessment, Batch, StepOutput, Task, data_loader
from hf_vit.trainer.sampler import EpochBatchSampler

from .arguments import RotationArguments, RotationDataArguments
from .data import load_turned_digits
from .metrics import RotationEvaluator, direction


class DigitRotation(Task):
    name = "digit_rotation"
    scoring_groups: ClassVar = {"data": RotationDataArguments}
    sample_unit = "images"
    best = ("mean_error", "min")

    def __init__(self, arguments: RotationArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        self.data = load_turned_digits(arguments.data, self.seed)
        fields = {"num_channels": 1, "image_size": 8, "patch_size": 2, "num_labels": 2, "problem_type": "regression"}
        set_seed(self.seed)  # all processes draw the same weights
        self.model = HfViTForImageClassification(HfViTConfig(**{**fields, **arguments.model.config_overrides}))

    def train_loader(self, batches_per_step: int) -> DataLoader:
        digits = self.data.splits["train"]
        batch_size = self.arguments.optimization.per_device_train_batch_size
        sampler = EpochBatchSampler(len(digits), batch_size, batches_per_step, seed=self.seed)
        return data_loader(digits, self.arguments.data, batch_sampler=sampler)

    def evaluation_loader(self, split: str) -> DataLoader:
        batch_size = self.arguments.optimization.per_device_eval_batch_size
        return data_loader(self.data.splits[split], self.arguments.data, batch_size=batch_size)

    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        outputs = model(pixel_values=batch["pixel_values"]).logits
        return StepOutput(F.mse_loss(outputs, direction(batch["angle"])))

    def evaluator(self, split: str, *, final: bool) -> RotationEvaluator:
        return RotationEvaluator(final=final, num_samples=self.arguments.data.card_num_samples)

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        score = arguments.score
        origin = {"revision": score.model_revision, "trust_remote_code": score.trust_remote_code}
        model = AutoModelForImageClassification.from_pretrained(score.model_name_or_path, **origin)
        data = load_turned_digits(arguments.data, seed=42)
        loader = data_loader(data.splits[score.split], arguments.data, batch_size=score.per_device_eval_batch_size)
        return Assessment(model, loader, RotationEvaluator(final=True), data.describe())

    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        model.save_pretrained(folder, state_dict=state_dict)

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import AutoModelForImageClassification\n"
            f"model = AutoModelForImageClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)"
        )
