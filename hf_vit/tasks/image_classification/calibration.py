"""Temperature scaling (arXiv 1706.04599) and test-time augmentation of a trained classifier.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vit.tasks.image_classification.arguments import TestTimeArguments
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.vision.processors import normalize

VIEWS = ("flip", "five_crop", "ten_crop")


class LogitsEvaluator(Evaluator):
    """The logits of a split, for what is fitted to them."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.state = {"rows": []}

    def step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return model(pixel_values=normalize(batch["pixel_values"], self.processor)).logits.float()

    def update(self, batch: Batch, outputs: torch.Tensor) -> None:
        columns = [np.asarray(batch["sample_key"])[:, 1:2], batch["labels"].cpu().numpy()[:, None]]
        self.state["rows"].append(np.concatenate([*columns, outputs.cpu().numpy()], axis=1).astype(np.float64))

    def compute(self) -> dict[str, Any]:
        """`loss`, that of the cross entropy."""
        logits, labels = self.counted()
        return {"loss": float(F.cross_entropy(logits, labels))}

    def counted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and class indices (N,) in the split's order."""
        rows = np.concatenate(self.state["rows"])
        counted = torch.from_numpy(rows[np.argsort(rows[:, 0], kind="stable")])
        return counted[:, 2:], counted[:, 1].long()


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature, between 0.01 and 100, by which logits (N, C) have the lowest cross entropy."""
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return float(log_temperature.detach().exp().clamp(0.01, 100))


def views_of(pixel_values: torch.Tensor, augmentation: str | None) -> list[torch.Tensor]:
    """Views (B, 3, height, width) of images: themselves, and their mirror images (`flip`), or centre and corners of
    the images made an eighth larger (`five_crop`), and their mirror images (`ten_crop`)."""
    if augmentation is None:
        return [pixel_values]
    if augmentation == "flip":
        return [pixel_values, pixel_values.flip(-1)]
    size = list(pixel_values.shape[-2:])
    larger = transforms.resize(pixel_values, [side + round(side / 8) for side in size], antialias=True)
    crops = transforms.five_crop if augmentation == "five_crop" else transforms.ten_crop
    return list(crops(larger, size))


class AdjustedClassifier(torch.nn.Module):
    """A classifier whose logits are divided by a temperature and, where asked for, averaged over views of an image:
    the log of the mean probability.

    Args:
        temperature: divides the logits.
        augmentation: see `views_of`.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0, augmentation: str | None = None):
        super().__init__()
        self.model = model
        self.config, self.dtype = model.config, model.dtype  # which pipelines ask for
        self.temperature = temperature
        self.augmentation = augmentation

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        views = views_of(pixel_values, self.augmentation)
        logits = [self.model(pixel_values=view).logits / self.temperature for view in views]
        if len(logits) == 1:
            return ImageClassifierOutput(logits=logits[0])
        found = torch.stack([each.float().log_softmax(-1) for each in logits])
        return ImageClassifierOutput(logits=found.logsumexp(0) - math.log(len(logits)))


def adjusted(model: Any, arguments: TestTimeArguments) -> Any:
    """The model as it is asked for at test time.

    Raises:
        ValueError: its config has no temperature to apply.
    """
    temperature = getattr(model.config, "calibration_temperature", None) if arguments.apply_temperature else 1.0
    if temperature is None:
        raise ValueError("--apply_temperature: the model's config has none (train with --temperature_scaling)")
    augmentation = arguments.test_time_augmentation
    if augmentation is None and temperature == 1:
        return model
    return AdjustedClassifier(model, temperature=temperature, augmentation=augmentation)
