"""Files of a run's folder beside checkpoints: the model, the records, the card, and copies on the Hub."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_vit.cards import write_card
from hf_vit.trainer.arguments import TrainingArguments
from hf_vit.trainer.authors import author_file, copy_author_file
from hf_vit.trainer.checkpoint import TrainingState
from hf_vit.trainer.output_dir import CHECKPOINTS, clear_temporary, lock, move_files, staging_folder
from hf_vit.trainer.publishing import HubArguments, Publisher
from hf_vit.trainer.run_record import RunRecord, write_predictions

if TYPE_CHECKING:
    from hf_vit.tasks.task import Evaluator, Task


class RunFolder:
    """The folder of a run, which the main process alone writes.

    Args:
        described: the task's description, from before processes shared the model out.

    Raises:
        ValueError: the author's file does not fit, or another strategy than the end's of publishing.
        hf_vit.hub.HubError: the Hub was not reached or refuses the token.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        arguments: TrainingArguments,
        described: dict[str, Any],
        *,
        is_sharded: bool,
    ):
        self.path = Path(arguments.run.output_dir)
        self.task = task
        self.arguments = arguments
        self.is_main = accelerator.is_main_process
        if self.is_main and self.path.is_dir() and not arguments.run.dry_run:
            lock(self.path)  # before anything there is touched
        author_file(arguments.recipe_path, self.path)  # what is wrong with it is known before training
        # Before the records are made, which hold the repository's id.
        publishes = self.is_main and not arguments.run.dry_run
        self.publisher = Publisher(arguments.hub if publishes else HubArguments(), self.path)
        if is_sharded and self.publisher.strategy != "end":
            raise ValueError("--hub_strategy must be end where processes share the weights out")
        self.record = RunRecord(arguments, accelerator, described)

    def prepare(self) -> None:
        """Make room for a run, or for what goes on with one."""
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            lock(self.path)
            if self.arguments.checkpoint.resume_from_checkpoint is None:
                shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
            clear_temporary(self.path)

    def write_record(self, status: str, state: TrainingState, **values: Any) -> None:
        if self.is_main:
            self.record.update(status=status, epochs=state.epochs, **values)
            self.record.write(self.path)

    @contextlib.contextmanager
    def recorded(self, state: TrainingState) -> Iterator[None]:
        """Record what ends a run before its end."""
        try:
            yield
        except BaseException as error:
            reason = {"error": f"{type(error).__name__}: {error}"} if isinstance(error, Exception) else {}
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                self.write_record("interrupted", state, **reason)
            raise

    def publish_epoch(self, epoch: float, model: PreTrainedModel, checkpoint: Path) -> None:
        """Publish the model as it is, where that is wanted."""

        def save(folder: Path) -> None:
            self._save_model(model, folder)
            self.record.write(folder)

        self.publisher.after_epoch(epoch, save, checkpoint)

    def finish(
        self,
        model: PreTrainedModel,
        state: TrainingState,
        evaluator: Evaluator,
        result: dict[str, Any],
        state_dict: dict | None = None,
        **values: Any,
    ) -> None:
        """Put the trained model, its samples, records and card into the folder, or nothing at all.

        Args:
            evaluator: of the last evaluation, whose metrics `result` holds.
            state_dict: the weights, where they are not the model's own.
            values: of the record.
        """
        if not self.is_main:
            return
        staging = staging_folder(self.path)
        self._save_model(model, staging, state_dict)
        result["samples"] = evaluator.save_samples(staging)
        write_predictions(evaluator, staging)
        found = {"result": result, **evaluator.records(), **values}
        self.record.update(status="finished", epochs=state.epochs, **found)
        self.record.write(staging)
        write_card(staging)
        move_files(staging, self.path)

    def told(self) -> str:
        """Sentences on what is in the folder of a finished run."""
        return (
            f"The model, its card (README.md) and its records (run.json, curves.png) are in {self.path}\n"
            f"Load it with\n\n{self.task.usage_snippet(self.path)}\n"
        )

    def _save_model(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        self.task.save_pretrained(model, folder, state_dict)
        copy_author_file(self.arguments.recipe_path, self.path, folder)
