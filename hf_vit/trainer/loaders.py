"""Loaders as the loop uses them: of training batches, whether drawn or read from a stream, and for evaluation.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from hf_vit.tasks.task import Task


def schedule_of(loader: DataLoader) -> Any:
    """The object with `steps_per_epoch`, `samples_per_batch`, `samples_per_step` and `set_epoch`."""
    return loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.batch_sampler


def tell_deepspeed(accelerator: Accelerator, schedule: Any, max_grad_norm: float | None) -> None:
    """Tell DeepSpeed, where it is used, what it would read from a loader of another kind or not at all."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=max(round(schedule.samples_per_batch), 1),
            gradient_clipping=max_grad_norm or 0.0,
        )


def dealt_by(loader: DataLoader) -> dict[str, int]:
    """Settings that decide, beside the sizes of batches and steps, which samples come within an epoch."""
    dataset: Any = loader.dataset
    if isinstance(loader.dataset, IterableDataset):
        return {"num_processes": dataset.process[1], "dataloader_num_workers": loader.num_workers}
    return {}


class _KeysOnCpu:
    """A collator that leaves `sample_key` as an array (B, 3), which nothing moves to a device: what asks for it would
    have to wait for the device."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        batch = self.collate(items)
        return {**batch, "sample_key": np.asarray(batch["sample_key"])}


def prepare_evaluation_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """The share of this process, on its device, in as many batches of one size as every other's."""
    loader.collate_fn = _KeysOnCpu(loader.collate_fn)
    accelerator.even_batches = accelerator.dataloader_config.non_blocking = True
    return accelerator.prepare(loader)


class EvaluationLoaders(dict[str, DataLoader]):
    """Prepared loaders by split: of those that a run evaluates, and of any other, such as the training samples for a
    baseline, as soon as it is asked for."""

    def __init__(self, accelerator: Accelerator, task: Task):
        super().__init__()
        self.accelerator, self.task = accelerator, task
        for split in task.evaluation_splits:
            self[split]

    def __missing__(self, split: str) -> DataLoader:
        self[split] = prepare_evaluation_loader(self.accelerator, self.task.evaluation_loader(split))
        return self[split]


def prepare_train_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """The share of this process, on its device. A stream is dealt out already."""
    loader.collate_fn = _KeysOnCpu(loader.collate_fn)
    if isinstance(loader.dataset, IterableDataset):
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False, "non_blocking": True}
        return prepare_data_loader(loader, device=accelerator.device, put_on_device=True, **alone)
    accelerator.even_batches = False  # the sampler gives whole steps, and not every batch has to be of one size
    return accelerator.prepare(loader)


def loader_from(loader: Any, epoch: int, batch: int) -> DataLoader:
    """The prepared loader from that batch of that epoch on."""
    loader.set_epoch(epoch)
    dataset: Any = loader.dataset
    if isinstance(loader.dataset, IterableDataset):
        dataset.first_batch = batch
    return skip_first_batches(loader, batch) if batch else loader
