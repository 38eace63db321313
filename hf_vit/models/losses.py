"""Losses of image classification, with and without a teacher, and of text."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, averaged over the batch, in fp32.

    Args:
        logits: shape (batch, num_labels).
        labels: class indices of shape (batch,), or distributions over the classes of shape (batch, num_labels).

    Raises:
        ValueError: if the shape does not fit, or (where looking costs no synchronisation: on the CPU, outside a
            compiled graph) an index is not in [0, num_labels).
    """
    num_labels = logits.shape[-1]
    if labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:1])} (class indices) or {tuple(logits.shape)} "
            f"(distributions), got {tuple(labels.shape)}"
        )
    if labels.ndim == 2:
        return nn.functional.cross_entropy(logits.float(), labels.float())
    if labels.is_floating_point():
        raise ValueError(f"labels of shape {tuple(labels.shape)} must be class indices, got dtype {labels.dtype}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_labels:
            raise ValueError(f"labels must be in [0, {num_labels}), got {low if low < 0 else high}")
    return nn.functional.cross_entropy(logits.float(), labels.long())


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, distillation_type: str, temperature: float
) -> torch.Tensor:
    """Distance of a student's prediction from its teacher's, averaged over the batch, in fp32.

    Args:
        logits: of the student, shape (batch, num_labels).
        teacher_logits: shape (batch, num_labels); no gradient flows into them.
        distillation_type: `"soft"`: temperature^2 * KL(teacher || student) of the distributions at that temperature
            (1503.02531), in the textbook scale. `"hard"`: cross entropy with the teacher's decision (2012.12877).
        temperature: above 0; only for `"soft"`.

    Raises:
        ValueError: if the shapes differ or `distillation_type` is unknown.
    """
    if teacher_logits.shape != logits.shape:
        raise ValueError(f"teacher_logits must have shape {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}")
    logits, teacher_logits = logits.float(), teacher_logits.detach().float()
    if distillation_type == "hard":
        return nn.functional.cross_entropy(logits, teacher_logits.argmax(-1))
    if distillation_type != "soft":
        raise ValueError(f"distillation_type must be soft or hard, got {distillation_type!r}")
    student = (logits / temperature).log_softmax(-1)
    teacher = (teacher_logits / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distilled_loss(
    logits: torch.Tensor,
    class_logits: torch.Tensor | None,
    distillation_logits: torch.Tensor | None,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    options: Any,
    label_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = classification_loss,
) -> torch.Tensor:
    """(1 - alpha) * the class head's loss with the labels + alpha * the distillation head's distance from the teacher
    (2012.12877).

    Args:
        logits: of the student, shape (batch, num_labels).
        class_logits, distillation_logits: of its heads where it has two; a student with one head takes it for both.
        labels: whatever `label_loss` takes.
        teacher_logits: shape (batch, num_labels).
        options: has `distillation_type`, `distillation_alpha` in [0, 1] and `distillation_temperature`.
    """
    from_labels = label_loss(logits if class_logits is None else class_logits, labels)
    student = logits if distillation_logits is None else distillation_logits
    kind, temperature = options.distillation_type, options.distillation_temperature
    from_teacher = distillation_loss(student, teacher_logits, kind, temperature)
    return (1 - options.distillation_alpha) * from_labels + options.distillation_alpha * from_teacher


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
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        low, high = (int(value) for value in labels.masked_fill(labels == -100, 0).aminmax())
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(
                f"labels must be in [0, {logits.shape[-1]}) or one of {', '.join(map(str, ignored))}, "
                f"got {low if low < 0 else high}"
            )
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    count = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return loss / count


__all__ = ["classification_loss", "distillation_loss", "distilled_loss", "token_loss"]
