"""The accuracy that an exported classifier loses on given data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vit.export.formats import ENDINGS, Function, load
from hf_vit.extras import extra


class Accuracies(NamedTuple):
    """Accuracies in [0, 1] of the original and of what was exported, on so many images."""

    original: float
    exported: float
    num_examples: int


class _Exported(nn.Module):
    """An exported classifier in the place of the original."""

    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.function({"pixel_values": pixel_values})[0])


def accuracies(source: str, exported: Path, format: str, data: dict[str, str]) -> Accuracies:
    """Both accuracies on a split of labelled images.

    Args:
        source: the original.
        exported: the folder of what was exported of it.
        format: its format.
        data: flags of `hf-vit score` and their values: `dataset_name`, `split`, `max_eval_samples`, ...

    Raises:
        ValueError: the data cannot be loaded or is of other classes.
    """
    with extra("train"):
        from accelerate import Accelerator

        from hf_vit.config import parse_groups
        from hf_vit.score import ScoreArguments
        from hf_vit.tasks.image_classification.task import ImageClassification
        from hf_vit.trainer.evaluation import evaluate
    groups = {"score": ScoreArguments, **ImageClassification.scoring_groups}
    words = [f"--model_name_or_path={source}", *(f"--{name}={value}" for name, value in data.items())]
    given = SimpleNamespace(**dict(zip(groups, parse_groups(list(groups.values()), words, "Measures a model."))))
    accelerator = Accelerator(cpu=True)

    def measure(model: nn.Module | None) -> tuple[float, int]:
        assessment = ImageClassification.assess(given)
        own: Any = assessment.model.eval() if model is None else model
        metrics, num_examples = evaluate(accelerator, own, assessment.loader, assessment.evaluator)
        return metrics["accuracy"], num_examples

    original, num_examples = measure(None)
    found, _ = measure(_Exported(load(exported / f"model{ENDINGS[format]}", format)))
    return Accuracies(original, found, num_examples)


__all__ = ["Accuracies", "accuracies"]
