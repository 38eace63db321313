"""One pass over a split on all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from hf_vit.tasks.task import Batch, Evaluator


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    evaluator: Evaluator,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], int]:
    """Metrics of a split, the same on every process, and its number of samples.

    Args:
        loader: prepared by `prepare_evaluation_loader`.
        after_batch: called after each, on every process; what it raises ends the evaluation.
    """
    dataset: Any = loader.dataset
    num_samples, counted = len(dataset), 0
    for number, batch in enumerate(loader):
        own = _own_samples(batch, number, accelerator, num_samples)
        with accelerator.autocast():
            outputs = evaluator.step(model, batch if own is None else own)
        if own is not None:
            evaluator.update(own, outputs)
            counted += len(own["sample_key"])
        after_batch()
    if accelerator.num_processes > 1:
        _add_up_over_processes(evaluator)
        counted = sum(gather_object([counted]))
    if counted != num_samples:
        raise RuntimeError(f"{num_samples} samples were to be evaluated, and {counted} were")
    return evaluator.compute(), counted


def _own_samples(batch: Batch, number: int, accelerator: Accelerator, num_samples: int) -> Batch | None:
    """The samples of this process's batch that no other batch has; None where there are none.

    Accelerate deals batches of one size out in turn, and fills the last ones up with samples from the beginning.
    """
    size = len(batch["sample_key"])
    start = (number * accelerator.num_processes + accelerator.process_index) * size
    if accelerator.num_processes == 1 or start + size <= num_samples:
        return batch
    return {name: column[: num_samples - start] for name, column in batch.items()} if start < num_samples else None


def _add_up_over_processes(evaluator: Evaluator) -> None:
    total: dict[str, Any] = {}
    for share in gather_object([evaluator.state]):
        _add(total, share)
    _replace(evaluator.state, total)


def _add(total: dict[str, Any], share: Mapping[str, Any]) -> None:
    for name, value in share.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total[name] + value if name in total else value


def _replace(state: dict[str, Any], total: Mapping[str, Any]) -> None:
    """Put the totals into the very dicts that `state` is made of: an evaluator's parts share them."""
    for name, value in total.items():
        if isinstance(value, Mapping):
            _replace(state.setdefault(name, {}), value)
        else:
            state[name] = value
