"""The contract of the loop: what a task offers it, what a training step gives, and how an evaluation adds up.

The loop knows nothing of teachers, labels, boxes or texts, and a task nothing of processes, precision or checkpoints.

Shapes: B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from hf_vit.config import Arguments
from hf_vit.trainer.optim import OptimizationArguments, parameter_groups
from hf_vit.trainer.signals import leave_process_group

Batch = dict[str, Any]  # tensors, arrays and lists whose first dimension is the batch's


@dataclass
class StepOutput:
    """Result of one forward pass in training.

    Args:
        loss: the scalar to be minimised, the mean over the batch.
        logs: the terms of the loss by name, scalars on the loss's device; tracked and recorded as means over batches.
            A term that is not finite stops the run as the loss does.
    """

    loss: torch.Tensor
    logs: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Evaluator(ABC):
    """One pass over one split, batch by batch, in memory that does not grow with the split beyond what a metric needs.

    Each process sees its share of the split, each sample once. What is counted stands in `state`: numbers, arrays and
    lists by name, dicts of them where there are many. When the pass is over, the loop adds up the numbers and arrays
    of all processes and joins their lists, so that `compute` finds the whole split's counts on each of them.

    Example:
        class Accuracy(Evaluator):
            def __init__(self):
                self.state = {"right": 0, "count": 0}

            def step(self, model, batch):
                return model(pixel_values=batch["pixel_values"]).logits.argmax(-1)  # (B,)

            def update(self, batch, outputs):
                self.state["right"] += int((outputs == batch["labels"]).sum())
                self.state["count"] += len(outputs)

            def compute(self):
                return {"accuracy": self.state["right"] / self.state["count"]}
    """

    state: dict[str, Any]

    @abstractmethod
    def step(self, model: torch.nn.Module, batch: Batch) -> Any:
        """Outputs of the model, in evaluation mode, for a batch: the work of the device, under the run's precision and
        without gradients. Every process calls it equally often."""

    @abstractmethod
    def update(self, batch: Batch, outputs: Any) -> None:
        """Count a batch into `state`."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Metrics of everything counted, as JSON holds them; `loss` and the task's `best` are among them."""

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """The metrics in a few words, for the log."""
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float))

    def warning(self, metrics: Mapping[str, Any]) -> str | None:
        """A sentence on metrics that say that nothing was learnt, None of others; of an evaluation after `compute`."""
        return None

    def records(self) -> dict[str, Any]:
        """Facts that a last evaluation adds to the run's record beside its metrics."""
        return {}

    def save_samples(self, folder: Path) -> list[dict[str, Any]]:
        """A few samples with what the model made of them, for the card, as JSON holds them; files that belong to them
        are written into the folder. Of a last evaluation, after `compute`."""
        return []

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Predictions of the model for each sample of a last evaluation, in the split's order, as JSON holds it."""
        raise NotImplementedError(f"{type(self).__name__} keeps no predictions")


class Data(Protocol):
    """Samples that a task trains and evaluates on."""

    @property
    def splits(self) -> Mapping[str, Any]:
        """Samples by the name of their split."""

    def describe(self) -> dict[str, Any]:
        """The record's `data`: `name` and, for each of `splits`, `num_examples` and `fingerprint`."""


@dataclass
class Assessment:
    """A saved model and the split that it is scored on.

    Args:
        loader: batches as those of `Task.evaluation_loader`.
        evaluator: of a last evaluation.
        data: the description of the split for the record.
        figures: metrics to PNG files by name.
    """

    model: PreTrainedModel
    loader: DataLoader
    evaluator: Evaluator
    data: dict[str, Any]
    figures: Callable[[Mapping[str, Any]], dict[str, bytes]] = lambda metrics: {}


class Task(ABC):
    """One thing to train: data, model, objective and evaluation. A task is made of the run's arguments, and raises
    `ValueError` where they do not fit together.

    Example:
        class Colours(Task):
            name = "colours"
            sample_unit = "images"
            best = ("accuracy", "max")

            def __init__(self, arguments):
                self.arguments = arguments
                self.data = load_colours(arguments.data)
                self.model = AutoModelForImageClassification.from_config(...)

            def train_loader(self, batches_per_step):
                size = self.arguments.optimization.per_device_train_batch_size
                colours = self.data.splits["train"]  # a Dataset that takes sample keys
                sampler = EpochBatchSampler(len(colours), size, batches_per_step, seed=self.arguments.run.seed)
                return data_loader(colours, self.arguments.data, batch_sampler=sampler)

            def evaluation_loader(self, split):
                size = self.arguments.optimization.per_device_eval_batch_size
                return data_loader(self.data.splits[split], self.arguments.data, batch_size=size)

            def training_step(self, model, batch):
                logits = model(pixel_values=batch["pixel_values"]).logits
                return StepOutput(F.cross_entropy(logits, batch["labels"]))

            def evaluator(self, split, *, final):
                return Accuracy()  # the example of `Evaluator`, with a loss

            def save_pretrained(self, model, folder, state_dict=None):
                model.save_pretrained(folder, state_dict=state_dict)

            def usage_snippet(self, folder):
                return f"model = AutoModelForImageClassification.from_pretrained({str(folder)!r})"

    Attributes:
        name: that of its folder.
        has_forecast: whether `per_device_train_batch_size` says what a batch holds, all of one size, so that
            `hf_vit.cost` can forecast what a step costs.
        scoring_groups: those that scoring a saved model takes, by the name that `assess` finds them under.
        sample_unit: what the data has many of, such as images.
        best: the metric that decides which checkpoint is the best, and whether its "max" or "min" is.
        arguments, model, data: of this run; `arguments.data` has what `data_loader` reads.
    """

    name: ClassVar[str]
    has_forecast: ClassVar[bool] = False
    scoring_groups: ClassVar[Mapping[str, type]] = {}
    sample_unit: ClassVar[str]
    best: tuple[str, Literal["max", "min"]]
    arguments: Arguments
    model: PreTrainedModel
    data: Data

    @abstractmethod
    def train_loader(self, batches_per_step: int) -> DataLoader:
        """Batches of an epoch for all processes, in whole optimizer steps of `batches_per_step`, or of this process
        from a stream.

        Each batch has `sample_key` (B, 3) int64, epoch, index and repeat of each sample, which stays on the CPU, as an
        array. The loader's `batch_sampler` (or its dataset, a stream) has `steps_per_epoch`, `samples_per_batch`,
        `samples_per_step` and `set_epoch`.
        """

    @abstractmethod
    def evaluation_loader(self, split: str) -> DataLoader:
        """Batches of one size, but for the last, of each sample of a split once, with `sample_key` as above."""

    @abstractmethod
    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        """Loss of a batch, computed by `model`, which is `self.model` as the processes share it. Nothing in it may
        wait for the device: no `.item()`, `.tolist()`, `float(tensor)` or `if tensor`."""

    @abstractmethod
    def evaluator(self, split: str, *, final: bool) -> Evaluator:
        """An evaluator of a split: `final` for the run's result, with every metric, otherwise for an epoch's end."""

    def before_training(self, model: PreTrainedModel, measure: Callable[[str, Evaluator], Any]) -> dict[str, float]:
        """Accuracies of simple baselines on the split of the result, by their names; the arguments are those of
        `after_training`."""
        return {}

    def after_training(self, model: PreTrainedModel, measure: Callable[[str, Evaluator], Any]) -> None:  # noqa: B027
        """Settle what is chosen on the validation split once the weights are, such as thresholds in the config.

        Args:
            model: that is evaluated and saved.
            measure: one pass over a split, counted by an evaluator; every process calls it.
        """

    @abstractmethod
    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        """Write all that it takes to use the model: weights (of `state_dict`, else its own), config, code, and what
        prepares its input."""

    @abstractmethod
    def usage_snippet(self, folder: Path) -> str:
        """Lines of Python that load what `save_pretrained` wrote."""

    def plan_rows(self) -> dict[str, str]:
        """Lines of the plan beside those of every run, by their names: what is done with the data, and by whose
        choice."""
        return {}

    def parameter_groups(self, optimization: OptimizationArguments, learning_rate: float) -> list[dict[str, Any]]:
        """Trainable parameters in groups with `weight_decay` and `lr`, by the rules of `trainer.optim`."""
        return parameter_groups(self.model, optimization, learning_rate)

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        """A saved model, ready to be scored.

        Args:
            arguments: `score` (`ScoreArguments`) and the groups of `scoring_groups`, by name.

        Raises:
            ValueError: the task cannot be scored, or model and data do not fit together.
        """
        raise ValueError(f"--task {cls.name}: its models cannot be scored")

    @property
    def evaluation_splits(self) -> tuple[str, str]:
        """The split followed during training and the one that the result is measured on."""
        splits = self.data.splits
        return ("validation" if "validation" in splits else "test", "test" if "test" in splits else "validation")

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
        chosen = getattr(self.arguments, "model", None)
        if getattr(chosen, "model_name_or_path", None) is not None:
            model["base_model_revision"] = getattr(self.model.config, "_commit_hash", None)
        return {"model": model, "data": self.data.describe()}


def data_loader(dataset: Dataset, arguments: Any, **options: Any) -> DataLoader:
    """A loader with the workers that the arguments ask for.

    Args:
        arguments: has `dataloader_num_workers` and `dataloader_prefetch_factor`.
        options: of `DataLoader`.
    """
    workers = arguments.dataloader_num_workers
    defaults = {
        "num_workers": workers,
        "prefetch_factor": arguments.dataloader_prefetch_factor,
        "persistent_workers": workers > 0,
        "worker_init_fn": leave_process_group,
        "pin_memory": torch.cuda.is_available(),
        # Its own generator: starting an epoch must not advance the one that dropout draws from.
        "generator": torch.Generator(),
    }
    return DataLoader(dataset, **{**defaults, **options})
