"""What all tasks have in common: where they evaluate, how they load, what they tell of their model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_vit.config import Arguments
from hf_vit.trainer.signals import leave_process_group


class Task:
    """Base of the tasks; `training.loop` says what a task offers. Those here have `data` with `splits`."""

    arguments: Arguments
    model: PreTrainedModel
    data: Any
    best_metric: str

    @property
    def evaluation_splits(self) -> tuple[str, str]:
        """The split followed during training and the one that the result is measured on."""
        splits = self.data.splits
        return ("validation" if "validation" in splits else "test", "test" if "test" in splits else "validation")

    def data_loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        """A loader with the workers that the arguments ask for."""
        workers = self.arguments.data.dataloader_num_workers
        options = {
            "num_workers": workers,
            "prefetch_factor": self.arguments.data.dataloader_prefetch_factor,
            "persistent_workers": workers > 0,
            "worker_init_fn": leave_process_group,
            "pin_memory": torch.cuda.is_available(),
            # Its own generator: starting an epoch must not advance the one that dropout draws from.
            "generator": torch.Generator(),
        }
        return DataLoader(dataset, **{**options, **kwargs})

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """The best metric's name and value, a fraction in per cent."""
        return f"{self.best_metric} {metrics[self.best_metric]:.2%}"

    def closing_records(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What the last evaluation adds to the run's record beside its result."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The run record's `model` and `data`."""
        parameters = list(self.model.parameters())
        config = self.model.config.to_diff_dict()
        config.pop("transformers_version", None)  # among the record's versions; a run may go on with a newer one
        model = {
            "class": type(self.model).__name__,
            "num_parameters": sum(parameter.numel() for parameter in parameters),
            "num_trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "config": config,
        }
        if self.arguments.model.model_name_or_path is not None:
            model["base_model_revision"] = getattr(self.model.config, "_commit_hash", None)
        return {"model": model, "data": self.data.describe()}
