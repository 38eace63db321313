"""The one Accelerate loop: devices, precision, accumulation, evaluation and checkpoints of every task.

`hf_vit.tasks.task` says what it asks of a task.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from hf_vit.trainer import loaders
from hf_vit.trainer.arguments import TrainingArguments
from hf_vit.trainer.averaging import averaged_model
from hf_vit.trainer.budget import Budget
from hf_vit.trainer.checkpoint import TrainingState, run_facts
from hf_vit.trainer.checkpointer import Checkpointer, Resumable, sharding_of
from hf_vit.trainer.energy import EnergyMeter
from hf_vit.trainer.evaluation import evaluate
from hf_vit.trainer.optim import build_optimizer, build_scheduler
from hf_vit.trainer.output_dir import CHECKPOINTS
from hf_vit.trainer.progress import Meter, progress_bar
from hf_vit.trainer.run_folder import RunFolder
from hf_vit.trainer.signals import Interruption
from hf_vit.trainer.step_watch import StepWatch
from hf_vit.trainer.tracking import log_metrics, start_trackers
from hf_vit.trainer.train_mode import train_mode
from hf_vit.trainer.unfreezing import gradual_unfreezing
from hf_vit.words import counted

if TYPE_CHECKING:
    from hf_vit.tasks.task import Batch, Evaluator, Task

logger = logging.getLogger(__name__)


class TrainingLoop:
    """Trains, evaluates and saves one task.

    Args:
        arguments: the groups `run`, `optimization`, `ema`, `checkpoint`, `tracking` and `hub` are read.

    Raises:
        ValueError: the checkpoint to resume from is missing or of another run.
    """

    def __init__(self, accelerator: Accelerator, task: Task, arguments: TrainingArguments, budget: Budget):
        self.started = time.perf_counter()
        self.accelerator, self.task, self.arguments, self.budget = accelerator, task, arguments, budget
        self.output_dir = Path(arguments.run.output_dir)
        self._sharding = sharding_of(accelerator)
        described = task.describe()  # before sharding renames the model's class
        self._prepare()
        # Dropout must differ between processes; until here all had to draw the same.
        set_seed(arguments.run.seed, device_specific=True)
        self.folder = RunFolder(accelerator, task, arguments, described, is_sharded=self._sharding is not None)
        self.record = self.folder.record
        facts = run_facts(described, self.schedule, self.train_loader, arguments, self._sharding)
        resumable = Resumable(self.model, self.optimizer, self.scheduler, self.ema, self._sharding)
        limit = arguments.checkpoint.checkpoints_total_limit
        self.checkpointer = Checkpointer(accelerator, self.output_dir, limit, facts, resumable)
        self.state = TrainingState()
        self.resume_path = self.checkpointer.find(arguments.checkpoint.resume_from_checkpoint)
        if self.resume_path is not None:
            self.state = self.checkpointer.read(self.resume_path)
        if arguments.checkpoint.load_best_model_at_end:
            self.checkpointer.check_best(self.state, task.evaluation_splits[0])
        arguments.stopping.check(task.evaluation_splits[0])

    def _prepare(self) -> None:
        """Model, optimizer, schedule, loaders and averages, on this process's device."""
        accelerator, task, options = self.accelerator, self.task, self.arguments.optimization
        train_loader = task.train_loader(accelerator.num_processes * options.gradient_accumulation_steps)
        self.schedule = loaders.schedule_of(train_loader)
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = options.max_train_steps or options.num_train_epochs * self.steps_per_epoch
        loaders.tell_deepspeed(accelerator, self.schedule, options.max_grad_norm)
        optimizer = build_optimizer(options, self.schedule.samples_per_step, task.parameter_groups)
        # Not prepared: Accelerate would step it once for each process.
        self.scheduler = build_scheduler(optimizer, options, self.num_steps)
        self.evaluation_loaders = loaders.EvaluationLoaders(accelerator, task)
        self.train_loader = loaders.prepare_train_loader(accelerator, train_loader)
        self.model, self.optimizer = accelerator.prepare(task.model, optimizer)
        whole = accelerator.unwrap_model(self.model)
        self.unfreezing = gradual_unfreezing(whole, options, self.steps_per_epoch, self._sharding)
        self.watch = StepWatch(accelerator, optimizer, self.output_dir / CHECKPOINTS)
        self.ema = averaged_model(whole, self.arguments.ema, self.num_steps, self.steps_per_epoch, self._sharding)

    def train(self) -> None:
        """From the first step, or the resumed one, to a folder that holds the trained model and its records.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the last checkpoint is kept.
            SystemExit: SIGTERM, SIGINT or SIGHUP came, with status 128 + signal, after a checkpoint was saved.
        """
        self.folder.prepare()
        self.accelerator.wait_for_everyone()
        self._saved_step = self.state.step
        if self.resume_path is not None:
            self.checkpointer.load(self.resume_path)
            self._log(f"resuming from {self.resume_path}: step {self.state.step:,} of {self.num_steps:,}")
            for change in self.record.go_on(self.output_dir, self.state.step):
                self._log(change)
        self.folder.write_record("running", self.state)
        # Of a run that was interrupted only the last part could be told, here and of the whole duration.
        measures = self.accelerator.is_main_process and self.resume_path is None
        self._energy = EnergyMeter(self.arguments.tracking.measure_energy if measures else None)
        if self.arguments.tracking.with_tracking:
            start_trackers(self.accelerator, self.arguments.tracking, self.arguments.to_dict())
        self._progress = progress_bar(self.num_steps, self.state.step, self.accelerator.is_main_process)
        recorded = self.folder.recorded(self.state)
        with Interruption(self.accelerator) as self._interruption, self._progress, logging_redirect_tqdm(), recorded:
            if self.resume_path is None:
                self.record.update(baselines=self.task.before_training(self.final_model, self.evaluate))
            while not self._is_over():
                self._train_epoch()
            self._finish()
        self.folder.publisher.finish()
        self._log(self.folder.told())

    def _is_over(self) -> bool:
        if self.state.step >= self.num_steps:
            return self.state.is_evaluated
        if (reason := self.arguments.stopping.reason(self.state)) is not None:
            self._log(f"stopping at step {self.state.step:,} of {self.num_steps:,}: {reason}")
        return reason is not None

    def _train_epoch(self) -> None:
        state = self.state
        self.schedule.set_epoch(state.epoch)
        loader = loaders.loader_from(self.train_loader, state.epoch, state.batch)
        train_mode(self.model)
        self._num_read = state.batch  # batches whose losses are known
        self._meter = Meter(self.schedule.samples_per_batch * self.accelerator.num_processes, self.budget)
        checkpoint = self.arguments.checkpoint
        if 0 < state.batch < len(self.train_loader) and checkpoint.evaluates(state.step) and not state.is_evaluated:
            self._evaluate_within()  # what was interrupted then
        for batch in self._meter.timed(loader) if state.step < self.num_steps else ():
            self._train_batch(batch)
            if self.accelerator.sync_gradients:
                self._after_step()
                ends = self.arguments.stopping.ends_epoch(self.accelerator, state, self._meter.since_lap)
                if ends or state.step == self.num_steps:
                    break
        self._read_losses(newest=True)
        self._meter.stop()
        is_cut = state.batch < len(self.train_loader) or state.step >= self.num_steps
        if is_cut or checkpoint.eval_strategy == "epoch" or checkpoint.evaluates(state.step):
            if not state.is_evaluated:  # within the epoch, where a run stops early
                self._evaluate()
        else:
            state.next_epoch()
            self._save()

    def _train_batch(self, batch: Batch) -> None:
        """Forward and backward pass and, where it is due, an optimizer step. Nothing here waits for the device."""
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():  # what the task runs beside the model, such as teachers, too
                output = self.task.training_step(self.model, batch)
            self.accelerator.backward(output.loss)
            self.watch.add(output, batch["sample_key"])
            self.state.batch += 1
            if self.accelerator.sync_gradients:
                if self.unfreezing is not None:
                    self.unfreezing.drop_gradients(self.state.step)
                limit = self.arguments.optimization.max_grad_norm or float("inf")
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
                number, rate = self.state.step + 1, self.scheduler.get_last_lr()[-1]
                self.watch.close(number, rate, norm, self._interruption.received)  # type: ignore[arg-type]  # a tensor
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            if not self.accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            if self.ema is not None:  # after skipped steps too: averages of epochs count them
                self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
            self.state.step += 1

    def _after_step(self) -> None:
        state, tracking = self.state, self.arguments.tracking
        within_epoch = state.batch < len(self.train_loader) and state.step < self.num_steps
        evaluates = within_epoch and self.arguments.checkpoint.evaluates(state.step)
        is_due = within_epoch and self.arguments.checkpoint.due(state.step) and not evaluates
        is_logged = tracking.with_tracking and state.step % tracking.logging_steps == 0
        self._read_losses(newest=is_due or is_logged)
        self._progress.update()
        loss = state.loss_sum / self._num_read if self._num_read else None
        self._progress.set_postfix_str(self._meter.postfix(self.task.sample_unit, loss), refresh=False)
        if is_logged:
            terms = {f"train_{name}": value for name, value in state.mean_terms().items()}
            values = {"train_loss": state.loss_sum / state.batch, "learning_rate": self.scheduler.get_last_lr()[-1]}
            self.accelerator.log({**values, **terms}, step=state.step)
        if is_due:
            self._save()
        if evaluates:
            self._evaluate_within()
        if within_epoch:
            self._heed(self.watch.signal)

    def _read_losses(self, *, newest: bool) -> None:
        """Add the losses of the steps that are over to the epoch's, those of the last one too if `newest`."""
        for values in self.watch.read(newest=newest):
            self.state.add(values)
            self._num_read += len(values[""])

    def _heed(self, signal: int | None = None) -> None:
        """Stop for a signal, by default for one that any process has received by now; every process calls it."""
        signal = self._interruption.signal() if signal is None else signal
        if signal:
            if self._saved_step != self.state.step:
                self._read_losses(newest=True)
                self._save()
            self._log(
                f"interrupted by signal {signal} at step {self.state.step:,}; go on with "
                "--resume_from_checkpoint latest"
            )
            raise SystemExit(128 + signal)

    def _save(self) -> None:
        """Save a checkpoint; the losses of all steps have been read, so that none was made that was not finite."""
        self.state.training_seconds += self._meter.lap()
        self.state.share(gather_object([self.state.totals]))  # one process writes the state for all
        self.checkpointer.save(self.state)
        self._saved_step = self.state.step

    def _evaluate_within(self) -> None:
        self._read_losses(newest=True)
        self._meter.stop()
        self._evaluate()
        self._meter.go_on()
        train_mode(self.model)

    def _evaluate(self) -> None:
        """Evaluate and save, at an epoch's end or within one."""
        state, split = self.state, self.task.evaluation_splits[0]
        evaluator = self.task.evaluator(split, final=False)
        metrics, _ = self.evaluate(split, evaluator)
        state.share(gather_object([state.totals]))
        facts = {"learning_rate": self.scheduler.get_last_lr()[-1], **self._meter.facts(self.task.sample_unit)}
        epoch = self.arguments.checkpoint.epoch_of(state, len(self.train_loader))
        row = state.note_evaluation(epoch, metrics, self.task.best, **facts)
        if state.batch >= len(self.train_loader):
            state.next_epoch()
        self._save()
        self.folder.write_record("running", state)
        self.folder.publish_epoch(row["epoch"], self.final_model, self.checkpointer.path_of(state.step))
        log_metrics(self.accelerator, split, metrics, state.step)
        self._log(
            f"epoch {row['epoch']:>3.5g}: train loss {row['train_loss']:.4f}, {split} loss {metrics['loss']:.4f}, "
            f"{evaluator.headline(metrics)}, {self._meter.told(self.task.sample_unit, with_mfu=True)}"
        )
        if state.step >= self.num_steps and (warning := evaluator.warning(metrics)):
            self._log(f"{split} {warning}")
        self._heed()

    @property
    def final_model(self) -> Any:
        """The model that is evaluated and saved: the averaged weights where there are some and they are wanted."""
        if self.ema is not None and self.arguments.ema.use_ema_weights:
            return self.ema.module
        return self.accelerator.unwrap_model(self.model)

    def evaluate(self, split: str, evaluator: Evaluator) -> tuple[dict[str, Any], int]:
        """Metrics of a split and its number of samples; a signal that comes ends it after a batch."""
        model, loader = self.final_model.eval(), self.evaluation_loaders[split]
        return evaluate(self.accelerator, model, loader, evaluator, self._heed)

    def _finish(self) -> None:
        state = self.state
        if self.arguments.checkpoint.load_best_model_at_end:
            self._log(self.checkpointer.take_best(state))
        self.task.after_training(self.final_model, self.evaluate)
        split = self.task.evaluation_splits[1]
        evaluator = self.task.evaluator(split, final=True)
        metrics, num_examples = self.evaluate(split, evaluator)
        total = time.perf_counter() - self.started if self.resume_path is None else None
        durations = {"training": state.training_seconds, "total": total}
        kept = state.best_epoch if self.arguments.checkpoint.load_best_model_at_end else None
        result = {"split": split, "num_examples": num_examples, "metrics": metrics, "kept_epoch": kept}
        # All processes must take part where they share the weights out.
        state_dict = self.accelerator.get_state_dict(self.model) if self._sharding else None
        cost = self._energy.stop()
        self.folder.finish(self.final_model, state, evaluator, result, state_dict, duration_s=durations, **cost)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self._log(
            f"{split} {evaluator.headline(metrics)} on {counted(num_examples, self.task.sample_unit)} after "
            f"{state.training_seconds:.0f} s of training{self.record.baselines}"
        )

    def _log(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.info(message)
