"""What the loop does with a loader of training batches, whether it draws samples or reads a stream."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset


def schedule_of(loader: DataLoader) -> Any:
    """The object with `steps_per_epoch`, `samples_per_batch`, `samples_per_step` and `set_epoch`."""
    return loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.batch_sampler


def dealt_by(loader: DataLoader) -> dict[str, int]:
    """What decides, beside the sizes of batches and steps, which samples come within an epoch."""
    if isinstance(loader.dataset, IterableDataset):
        return {"num_processes": loader.dataset.process[1], "dataloader_num_workers": loader.num_workers}
    return {}


def prepare_train_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """The share of this process, on its device. A stream is dealt out already."""
    if isinstance(loader.dataset, IterableDataset):
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
        return prepare_data_loader(loader, device=accelerator.device, put_on_device=True, **alone)
    accelerator.even_batches = False  # the sampler gives whole steps, and not every batch has to be of one size
    return accelerator.prepare(loader)


def loader_from(loader: DataLoader, epoch: int, batch: int) -> DataLoader:
    """The prepared loader from that batch of that epoch on."""
    loader.set_epoch(epoch)
    if isinstance(loader.dataset, IterableDataset):
        loader.dataset.first_batch = batch
    return skip_first_batches(loader, batch) if batch else loader
