"""Where a run is, what a checkpoint must share with the run that resumes it, and when one is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch.utils.data import DataLoader

from hf_vit.config import argument, check_range
from hf_vit.trainer.loaders import dealt_by
from hf_vit.trainer.sampler import BalancedBatchSampler

if TYPE_CHECKING:
    from hf_vit.trainer.arguments import TrainingArguments

STATE_FILE = "trainer_state.json"


@dataclass
class CheckpointArguments:
    _argument_group_name: ClassVar[str] = "Evaluation while training, and checkpoints"

    eval_strategy: str = argument(
        "epoch", help="Evaluate, and save, after every epoch or every eval_steps.", choices=("epoch", "steps")
    )
    eval_steps: int | None = argument(None, help="Optimizer steps from one evaluation to the next, for `steps`.")

    checkpointing_steps: str = argument("epoch", help="Save every so many optimizer steps, or `epoch`.")
    checkpoints_total_limit: int = argument(1, help="Latest checkpoints kept; the best one is kept beside them.")
    load_best_model_at_end: bool = argument(
        False, help="Save the weights that were best on the validation split instead of the last ones."
    )
    resume_from_checkpoint: str | None = argument(
        None,
        help="`latest` (of output_dir) or a checkpoint's folder: go on exactly where it was saved.",
        aliases=["--resume"],
        nargs="?",
        const="latest",
    )

    def __post_init__(self) -> None:
        if (self.eval_strategy == "steps") != (self.eval_steps is not None):
            raise ValueError("--eval_strategy steps and --eval_steps go together")
        check_range("eval_steps", self.eval_steps, 1)
        if self.checkpointing_steps != "epoch" and not (
            self.checkpointing_steps.isdigit() and int(self.checkpointing_steps) > 0
        ):
            raise ValueError(
                f"--checkpointing_steps must be a positive number or 'epoch', found {self.checkpointing_steps!r}"
            )
        check_range("checkpoints_total_limit", self.checkpoints_total_limit, 1)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation falls on this optimizer step, wherever the epoch ends."""
        return self.eval_steps is not None and step % self.eval_steps == 0

    def epoch_of(self, state: TrainingState, num_batches: int) -> float:
        """The epoch that an evaluation ends or, where evaluations follow the steps, the part of the epochs that is
        over.

        Args:
            num_batches: in an epoch of a process.
        """
        if self.eval_strategy == "epoch" or state.batch >= num_batches:
            return state.epoch + 1
        return round(state.epoch + state.batch / num_batches, 7)

    def due(self, step: int) -> bool:
        """Whether a checkpoint falls on this optimizer step within an epoch."""
        return self.checkpointing_steps != "epoch" and step % int(self.checkpointing_steps) == 0


@dataclass
class TrainingState:
    """Where a run is. `epoch` and `batch` name the next batch of a process; `step` counts optimizer steps done."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)  # sum and number of each term of the loss
    best_metric: float | None = None
    best_step: int | None = None
    training_seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_evaluated(self) -> bool:
        """Whether the last step is one that was evaluated."""
        return self.step <= (self.epochs[-1]["step"] if self.epochs else 0)

    @property
    def best_epoch(self) -> float | None:
        """The epoch that ended with the best step, or the part of the epochs that was over then."""
        return next((row["epoch"] for row in self.epochs if row["step"] == self.best_step), None)

    @property
    def totals(self) -> tuple[float, dict[str, tuple[float, float]], float]:
        """Losses and their terms of this process over this epoch, and its seconds of training."""
        return self.loss_sum, self.terms, self.training_seconds

    def add(self, values: Mapping[str, Sequence[float]]) -> None:
        """Count the batches of a step: the losses, under "", and their terms."""
        self.loss_sum += sum(values[""])
        for name, found in values.items():
            if name:
                total, number = self.terms.get(name, (0.0, 0))
                self.terms[name] = (total + sum(found), number + len(found))

    def mean_terms(self) -> dict[str, float]:
        """Means over the epoch's batches that have the term."""
        return {name: total / number for name, (total, number) in sorted(self.terms.items())}

    def share(self, totals: Sequence[tuple[float, dict[str, tuple[float, float]], float]]) -> None:
        """Take the means of the losses that the processes have added up, each of them given, and the longest of their
        times: all must find that it is up, or none, for one that goes on would wait for the others."""
        count = len(totals)
        self.loss_sum = sum(loss_sum for loss_sum, _, _ in totals) / count
        self.training_seconds = max(seconds for _, _, seconds in totals)
        names = {name for _, terms, _ in totals for name in terms}
        pairs = {name: [terms[name] for _, terms, _ in totals if name in terms] for name in sorted(names)}
        self.terms = {
            name: (sum(total for total, _ in found) / count, sum(number for _, number in found) / count)
            for name, found in pairs.items()
        }

    def note_evaluation(self, epoch: float, metrics: Mapping[str, Any], best: tuple[str, str], **facts: Any) -> dict:
        """Take an evaluation in, and return its row.

        Args:
            epoch: that it ends, or, within one, the part of the epochs that is over. One that was cut short is told
                again when a later run completes it.
            best: the metric that decides and its mode, "max" or "min".
        """
        row = {
            "epoch": epoch,
            "step": self.step,
            "train_loss": self.loss_sum / self.batch,
            **({"train_terms": self.mean_terms()} if self.terms else {}),
            "metrics": metrics,
            **facts,
        }
        self.epochs = [*(earlier for earlier in self.epochs if earlier["epoch"] != epoch), row]
        self.note_best(*best, metrics)
        return row

    def note_best(self, name: str, mode: str, metrics: Mapping[str, Any]) -> None:
        """Take the metric for the best so far if it is; of equal ones the first is.

        Args:
            mode: "max" or "min".
        """
        value = metrics[name]
        is_better = self.best_metric is None or (
            value > self.best_metric if mode == "max" else value < self.best_metric
        )
        if is_better:
            self.best_metric, self.best_step = value, self.step

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.loss_sum, self.terms = self.epoch + 1, 0, 0.0, {}


def run_facts(
    described: Mapping[str, Any],
    schedule: Any,
    train_loader: DataLoader,
    arguments: TrainingArguments,
    sharding: str | None,
) -> dict[str, Any]:
    """Facts that a checkpoint must share with the run that resumes it; see `Checkpointer`.

    Args:
        described: the task's description.
        schedule: of `train_loader`, which is prepared.
        sharding: how processes share the weights out, None if they do not.
    """
    options = arguments.optimization
    return {
        "model": described["model"],
        "data": {name: split["fingerprint"] for name, split in described["data"]["splits"].items()},
        "layout": {"distributed_type": sharding or "replicated", "torch_compile": options.torch_compile},
        "batch": {"global_batch_size": schedule.samples_per_step},
        "position": {
            "seed": arguments.run.seed,
            "gradient_accumulation_steps": options.gradient_accumulation_steps,
            **dealt_by(train_loader),
            **({"sampling": "balanced"} if isinstance(schedule, BalancedBatchSampler) else {}),
        },
    }
