"""Losses of image classification, with and without a teacher, and of text.

Shapes: B batch, N patches.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .strict_config import PROBLEM_TYPES

# The label that torch is to leave out: one that occurs nowhere, where its own, -100, would drop a sample silently.
_NO_LABEL = -(2**31)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None) -> torch.Tensor:
    """Loss of a classifier or regressor, averaged, in fp32.

    Args:
        logits: shape (batch, num_labels).
        labels: what `problem_type` asks for.
        problem_type: `"single_label_classification"`: cross entropy with class indices of shape (batch,), or with
            distributions over the classes of shape (batch, num_labels). `"multi_label_classification"`: binary cross
            entropy of each label, with probabilities of shape (batch, num_labels). `"regression"`: mean squared error
            with values of shape (batch, num_labels), or of shape (batch,) too where there is one label. `None`:
            regression if there is one label, else single-label classification.

    Raises:
        ValueError: if shape or type of the labels fit no such loss, or (where looking costs no synchronisation: on
            the CPU, outside compiled graphs and transforms of functions) an index is not in [0, num_labels), a
            probability is not in [0, 1] or a distribution does not sum to one.
    """
    problem_type = _resolved(problem_type, logits)
    if problem_type == "single_label_classification":
        return _single_label_loss(logits, labels)
    shapes = [logits.shape]
    if problem_type == "regression" and logits.shape[-1] == 1:
        shapes.insert(0, logits.shape[:1])
    if labels.shape not in shapes or not labels.is_floating_point():
        raise ValueError(
            f"labels must have shape {' or '.join(str(tuple(shape)) for shape in shapes)} and a floating-point dtype "
            f"for problem_type {problem_type!r}, got shape {tuple(labels.shape)} and dtype {labels.dtype}"
        )
    labels = labels.float().reshape(logits.shape)
    if problem_type == "regression":
        return nn.functional.mse_loss(logits.float(), labels)
    _check_range(labels, 0, 1, f"in [0, 1] for problem_type {problem_type!r}")
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)


def _resolved(problem_type: str | None, logits: torch.Tensor) -> str:
    if problem_type is None:
        return "regression" if logits.shape[-1] == 1 else "single_label_classification"
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)} or None, got {problem_type!r}")
    return problem_type


def _single_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    num_labels = logits.shape[-1]
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])} (class indices) or {tuple(logits.shape)} "
            f"(distributions), got {tuple(labels.shape)}"
        )
    kind, must_be_floating = ("class indices", False) if labels.ndim == 1 else ("distributions", True)
    if labels.is_floating_point() != must_be_floating or labels.dtype == torch.bool:
        raise ValueError(f"labels of shape {tuple(labels.shape)} must be {kind}, got dtype {labels.dtype}")
    if labels.ndim == 1:
        _check_range(labels, 0, num_labels - 1, f"in [0, {num_labels})")
        return nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=_NO_LABEL)
    labels = labels.float()
    remedy = "(labels that do not exclude each other: set problem_type 'multi_label_classification')"
    _check_range(labels, 0, 1, f"distributions, in [0, 1] {remedy}")
    # In low precision they add up to one but roughly.
    _check_range(labels.sum(-1), 0.95, 1.05, f"distributions, of sum 1 {remedy}")
    return nn.functional.cross_entropy(logits.float(), labels)


def _check_range(values: torch.Tensor, low: float, high: float, requirement: str) -> None:
    """Raise a `ValueError` for labels outside [low, high], where looking at them costs no synchronisation."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return
    try:
        smallest, largest = (value.item() for value in values.aminmax())
    except RuntimeError:  # under vmap and the like, no single value is there to be looked at
        return
    if not (low <= smallest and largest <= high):
        raise ValueError(f"labels must be {requirement}, got {largest if low <= smallest else smallest}")


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    distillation_type: str,
    temperature: float,
    problem_type: str | None = None,
) -> torch.Tensor:
    """Distance of a student's prediction from its teacher's, averaged as [`classification_loss`], in fp32.

    Args:
        logits: of the student, shape (batch, num_labels).
        teacher_logits: shape (batch, num_labels); no gradient flows into them.
        distillation_type: `"soft"`: temperature^2 * KL(teacher || student) of the distributions at that temperature
            (1503.02531), in the textbook scale. `"hard"`: cross entropy with the teacher's decision (2012.12877).
            Where labels do not exclude each other, each has a distribution over yes and no, and a decision, of its
            own.
        temperature: above 0; only for `"soft"`.
        problem_type: as for [`classification_loss`].

    Raises:
        ValueError: if the shapes differ, `distillation_type` is unknown, or the problem is a regression, in which a
            teacher has neither distributions nor decisions.
    """
    problem_type = _resolved(problem_type, logits)
    if problem_type == "regression":
        raise ValueError(
            f"problem_type must be single_label_classification or multi_label_classification for distillation, got "
            f"{problem_type!r} with num_labels {logits.shape[-1]}"
        )
    if teacher_logits.shape != logits.shape:
        raise ValueError(f"teacher_logits must have shape {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}")
    if distillation_type not in ("soft", "hard"):
        raise ValueError(f"distillation_type must be soft or hard, got {distillation_type!r}")
    logits, teacher_logits = logits.float(), teacher_logits.detach().float()
    is_multi_label = problem_type == "multi_label_classification"
    if distillation_type == "hard":
        decisions = (teacher_logits > 0).float() if is_multi_label else teacher_logits.argmax(-1)
        return classification_loss(logits, decisions, problem_type)
    student, teacher = logits / temperature, teacher_logits / temperature
    if is_multi_label:
        binary_cross_entropy, targets = nn.functional.binary_cross_entropy_with_logits, teacher.sigmoid()
        return temperature**2 * (binary_cross_entropy(student, targets) - binary_cross_entropy(teacher, targets))
    divergence = nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return temperature**2 * divergence


def distilled_loss(
    logits: torch.Tensor,
    class_logits: torch.Tensor | None,
    distillation_logits: torch.Tensor | None,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    options: Any,
    label_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    problem_type: str | None = None,
) -> torch.Tensor:
    """(1 - alpha) * the class head's loss with the labels + alpha * the distillation head's distance from the teacher
    (2012.12877).

    Args:
        logits: of the student, shape (batch, num_labels).
        class_logits, distillation_logits: of its heads where it has two; a student with one head takes it for both.
        labels: whatever `label_loss` takes.
        teacher_logits: shape (batch, num_labels).
        options: has `distillation_type`, `distillation_alpha` in [0, 1] and `distillation_temperature`.
        label_loss: loss of logits and labels; [`classification_loss`] of this `problem_type` unless given.
        problem_type: as for [`classification_loss`].
    """
    if label_loss is None:
        label_loss = partial(classification_loss, problem_type=problem_type)
    from_labels = label_loss(logits if class_logits is None else class_logits, labels)
    student = logits if distillation_logits is None else distillation_logits
    kind, temperature = options.distillation_type, options.distillation_temperature
    from_teacher = distillation_loss(student, teacher_logits, kind, temperature, problem_type)
    return (1 - options.distillation_alpha) * from_labels + options.distillation_alpha * from_teacher


def token_labeling_loss(token_logits: torch.Tensor, token_labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each patch with its own label, averaged over the patches that have one, in fp32 (token
    labeling, 2104.10858).

    Args:
        token_logits: shape (batch, patches, num_labels).
        token_labels: of the same shape: a distribution over the classes for each patch, or zeros for one without a
            label.

    Raises:
        ValueError: if the shape does not fit, or (on the CPU, as for [`classification_loss`]) a patch's label is
            neither a distribution nor zeros.
    """
    if token_labels.shape != token_logits.shape or not token_labels.is_floating_point():
        raise ValueError(
            f"token_labels must have shape {tuple(token_logits.shape)} and a floating-point dtype, got shape "
            f"{tuple(token_labels.shape)} and dtype {token_labels.dtype}"
        )
    token_labels = token_labels.float()
    _check_range(token_labels, 0, 1, "distributions over the classes for each patch, in [0, 1]")
    shares = token_labels.sum(-1)  # (B, N)
    is_labelled = shares > 0
    _check_range(shares + ~is_labelled, 0.95, 1.05, "distributions over the classes for each patch, of sum 1 or 0")
    losses = -(token_labels * token_logits.float().log_softmax(-1)).sum(-1)
    return losses.sum() / is_labelled.sum().clamp(min=1)


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignored: tuple[int, ...] = (-100,),
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy of next-token predictions, averaged over the labels that count, in fp32. Zero (with zero
    gradients) if none counts.

    Args:
        logits: shape (batch, tokens, vocabulary); `logits[:, i]` predicts `labels[:, i]`.
        labels: token ids, shape (batch, tokens).
        ignored: labels that do not count.
        label_smoothing: share of the target spread evenly over the vocabulary (1512.00567), in [0, 1).
        num_items_in_batch: divide the sum by this in place of the number of labels that count, so that the gradients
            of several batches add up to those of one large batch.

    Raises:
        ValueError: if the shape does not fit, or (where looking costs no synchronisation: on the CPU, outside a
            compiled graph) a label that counts is not in [0, vocabulary).
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    for value in ignored:
        labels = labels.masked_fill(labels == value, -100)
    requirement = f"in [0, {logits.shape[-1]}) or one of {', '.join(map(str, ignored))}"
    _check_range(labels.masked_fill(labels == -100, 0), 0, logits.shape[-1] - 1, requirement)
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    count = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return loss / count


__all__ = ["classification_loss", "distillation_loss", "distilled_loss", "token_labeling_loss", "token_loss"]
