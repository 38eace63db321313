"""The loss of a run's labels, of the arguments and the data, and what does not go together with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_vit.tasks.image_classification.imbalance import AUTO, check_present, weights_of
from hf_vit.tasks.image_classification.labelled_images import LabelledImages
from hf_vit.tasks.image_classification.losses import LOGIT_ADJUSTED, MULTI_LABEL, ClassificationLoss
from hf_vit.tasks.image_classification.multi_label import UNKNOWN, MultiLabelLoss

if TYPE_CHECKING:
    from hf_vit.tasks.image_classification.arguments import ImageClassificationArguments


def build_label_loss(
    arguments: ImageClassificationArguments, data: LabelledImages
) -> ClassificationLoss | MultiLabelLoss:
    """Return the loss with the weights of the classes and their numbers, where they matter.

    Raises:
        ValueError: what is wanted of the classes is not known, or they have no training images.
    """
    loss, given, names = arguments.loss, arguments.imbalance, data.class_names
    streaming = arguments.data.streaming
    for name, wanted in (
        ("class_weights auto", given.class_weights == AUTO),
        ("loss_type logit_adjusted", loss.loss_type == LOGIT_ADJUSTED),
        ("balanced_sampling", given.balanced_sampling),
    ):
        if wanted and streaming:
            raise ValueError(f"--{name} does not go with --streaming, whose classes are not counted before")
    counts = np.ones(len(names), int) if streaming else data.class_counts("train")
    weights = None if given.class_weights is None else weights_of(given.class_weights, counts, names)
    if data.is_multi_label:
        mixes = arguments.augmentation.mixup_alpha or arguments.augmentation.cutmix_alpha
        if mixes and (data.labels("train") == UNKNOWN).any():
            raise ValueError("--mixup_alpha and --cutmix_alpha mix labels, and some of these are not known")
        return MultiLabelLoss(loss, weights)
    if loss.loss_type == LOGIT_ADJUSTED:
        check_present("--loss_type logit_adjusted", counts, names)
    return ClassificationLoss(loss, weights, counts.tolist())


def check_multi_label(arguments: ImageClassificationArguments) -> None:
    """Raise `ValueError` for what asks for one label an image."""
    wanted = {
        "streaming": arguments.data.streaming,
        "teacher": arguments.distillation.teacher,
        "balanced_sampling": arguments.imbalance.balanced_sampling,
        "temperature_scaling": arguments.evaluation.temperature_scaling,
        "token_label_column_name": arguments.data.token_label_column_name,
        "token_label_annotator": arguments.token_labels.token_label_annotator,
    }
    for name, value in wanted.items():
        if value:
            raise ValueError(f"--{name} does not go with --problem_type {MULTI_LABEL}")
