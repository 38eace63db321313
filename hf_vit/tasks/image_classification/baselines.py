"""Simple classifiers of what a model sees before it is trained: the k nearest neighbours and a linear probe.

Shapes: B batch, D size of the vector that the classifier gets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import PreTrainedModel

from hf_vit.tasks.image_classification.arguments import ImageClassificationArguments
from hf_vit.tasks.image_classification.models import head_parameters
from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.vision.processors import normalize

NUM_NEIGHBOURS = 20  # as DINO's (arXiv 2104.14294) has it
MOST_IMAGES = 10_000  # that are looked at without being asked
_NO_VECTOR = "--baseline: {} has no linear classifier of one vector an image"

logger = logging.getLogger(__name__)


class VectorsEvaluator(Evaluator):
    """The vectors (N, D) that a model's classifier gets, and the classes (N,).

    Raises:
        ValueError: the model has no linear classifier of one vector an image.
    """

    def __init__(self, model: PreTrainedModel, processor: Any):
        self.processor = processor
        self.heads = _linear_heads(model)
        self.state = {"rows": []}

    def step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Vectors (B, D)."""
        found: list[torch.Tensor] = []
        hooks = [head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for head in self.heads]
        try:
            model(pixel_values=normalize(batch["pixel_values"], self.processor))
        finally:
            for hook in hooks:
                hook.remove()
        if not found or found[0].ndim != 2:
            raise ValueError(_NO_VECTOR.format(type(model).__name__))
        return found[0].float()

    def update(self, batch: Batch, outputs: torch.Tensor) -> None:
        columns = [np.asarray(batch["sample_key"])[:, 1:2], batch["labels"].cpu().numpy()[:, None]]
        self.state["rows"].append(np.concatenate([*columns, outputs.cpu().numpy()], axis=1).astype(np.float64))

    def compute(self) -> dict[str, Any]:
        return {}

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (N, D) float32 and class indices (N,) in the split's order."""
        rows = np.concatenate(self.state["rows"])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        return rows[:, 2:].astype(np.float32), rows[:, 1].astype(np.int64)


def _linear_heads(model: PreTrainedModel) -> list[nn.Linear]:
    """Linear classifiers, in the order in which they are called; copies that adapters leave unused among them."""
    own = {id(parameter) for parameter in head_parameters(model)}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in own]
    heads = [module for module in linear if module.out_features == model.config.num_labels]
    if not heads:
        raise ValueError(_NO_VECTOR.format(type(model).__name__))
    return heads


def knn_and_probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Accuracies of scikit-learn's nearest neighbours and of its logistic regression, by what they are called.

    Args:
        train, test: vectors (N, D) and class indices (N,).
    """
    count = min(NUM_NEIGHBOURS, len(train[0]))
    found: dict[str, Any] = {"kNN": KNeighborsClassifier(count, metric="cosine", weights="distance")}
    if len(np.unique(train[1])) > 1:
        found["linear probe"] = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return {name: float(classifier.fit(*train).score(*test)) for name, classifier in found.items()}


def frozen_start(
    arguments: ImageClassificationArguments,
    model: PreTrainedModel,
    processor: Any,
    split: str,
    num_images: int,
    measure: Callable[[str, Evaluator], Any],
) -> dict[str, float]:
    """What simple classifiers of the model's vectors reach on a split, fitted to the training images as they are;
    nothing where `--baseline` does not ask for it or, by itself, the start is no checkpoint or the images are many.

    Args:
        num_images: in the training split and this one.
        measure: one pass over a split, counted by an evaluator; every process calls it.

    Raises:
        ValueError: `--baseline` asks for it, and the model has no vectors.
    """
    is_asked_for = arguments.evaluation.baseline == "yes"
    if arguments.evaluation.baseline == "auto":
        is_plain = not (arguments.loss.is_multi_label or arguments.data.streaming)
        if arguments.model.model_name_or_path is None or not is_plain or num_images > MOST_IMAGES:
            return {}
    elif not is_asked_for:
        return {}
    vectors = {}
    for each in ("train", split):
        try:
            evaluator = VectorsEvaluator(model, processor)
            measure(each, evaluator)
        except ValueError:
            if is_asked_for:
                raise
            return {}
        vectors[each] = evaluator.counted()
    found = knn_and_probe(vectors["train"], vectors[split])
    if PartialState().is_main_process:
        logger.info(
            f"the frozen start on {split}: {', '.join(f'{name} {value:.2%}' for name, value in found.items())}"
        )
    return found
