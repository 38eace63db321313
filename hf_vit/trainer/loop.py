"""The one Accelerate loop: devices, precision, accumulation, checkpoints and records of every task.

A task offers `model`, `train_loader(batches_per_step)`, `evaluation_loader(split)`, `evaluation_splits`,
`training_step(model, batch) -> {"loss", "outputs"}`, `evaluation_step(model, batch, detailed=...) -> tensors of each
sample`, `compute_metrics(gathered, detailed=...)`, `describe()`, `save_pretrained(model, folder, state_dict)`,
`save_samples(gathered, split, folder)`, `closing_records(metrics)`, `loading_lines(folder)`, `sample_unit`,
`best_metric` (higher is better) and `headline(metrics)`, which says it. `detailed` is for the last evaluation.
Each batch carries `sample_key` (B, 3), the sampler's keys. The loop knows nothing of teachers, labels or text.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hf_vit.cards import write_card
from hf_vit.config import Arguments
from hf_vit.tasks.image_classification.models import train_mode
from hf_vit.trainer.authors import author_file, copy_author_file
from hf_vit.trainer.averaging import averaged_model
from hf_vit.trainer.checkpoint import (
    CHECKPOINTS,
    Checkpointer,
    TrainingState,
    clear_temporary,
    move_files,
    staging_folder,
)
from hf_vit.trainer.energy import EnergyMeter
from hf_vit.trainer.evaluation import gather_predictions
from hf_vit.trainer.finite import suspects
from hf_vit.trainer.loaders import dealt_by, loader_from, prepare_train_loader, schedule_of
from hf_vit.trainer.optim import build_optimizer, build_scheduler
from hf_vit.trainer.progress import Meter
from hf_vit.trainer.publishing import HubArguments, Publisher
from hf_vit.trainer.run_record import RunRecord, peak_memory_bytes
from hf_vit.trainer.signals import Interruption
from hf_vit.trainer.tracking import start_trackers

logger = logging.getLogger(__name__)


class TrainingLoop:
    """Trains, evaluates and saves one task.

    Args:
        arguments: the groups `run`, `optimization`, `ema`, `checkpoint`, `tracking` and `hub` are read.
        task: see the module's docstring.

    Raises:
        ValueError: the checkpoint to resume from is missing or of another run.
    """

    def __init__(self, accelerator: Accelerator, task: Any, arguments: Arguments):
        self.started = time.perf_counter()
        self.accelerator = accelerator
        self.task = task
        self.arguments = arguments
        self.output_dir = Path(arguments.run.output_dir)
        author_file(arguments.recipe_path, self.output_dir)  # what is wrong with it is known before training
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []  # losses and sample keys of the step under way
        described = task.describe()  # before sharding renames the model's class
        self._prepare()
        # Dropout must differ between processes; until here all had to draw the same.
        set_seed(arguments.run.seed, device_specific=True)

        # One process publishes; before the records are made, which hold the repository's id.
        publishes = accelerator.is_main_process and not arguments.run.dry_run
        self.publisher = Publisher(arguments.hub if publishes else HubArguments(), self.output_dir)
        if self._sharded and self.publisher.strategy != "end":
            raise ValueError("--hub_strategy must be end where processes share the weights out")
        self.record = RunRecord(arguments, accelerator, described)
        self.checkpointer = self._checkpointer(described)
        self.state = TrainingState()
        self.resume_path = None
        if arguments.checkpoint.resume_from_checkpoint is not None:
            self.resume_path = self.checkpointer.find(arguments.checkpoint.resume_from_checkpoint)
        if self.resume_path is not None:
            self.state = self.checkpointer.read(self.resume_path)
        if arguments.checkpoint.load_best_model_at_end:
            self._check_best()

    def _prepare(self) -> None:
        """Model, optimizer, schedule, loaders and averages, on this process's device."""
        accelerator, task, options = self.accelerator, self.task, self.arguments.optimization
        train_loader = task.train_loader(accelerator.num_processes * options.gradient_accumulation_steps)
        self.schedule = schedule_of(train_loader)
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = options.max_train_steps or options.num_train_epochs * self.steps_per_epoch
        if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it reads these from a loader or not at all
            accelerator.state.deepspeed_plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=max(round(self.schedule.samples_per_batch), 1),
                gradient_clipping=options.max_grad_norm or 0.0,
            )
        optimizer = build_optimizer(task.model, options, self.schedule.samples_per_step)
        # Not prepared: Accelerate would step it once for each process.
        self.scheduler = build_scheduler(optimizer, options, self.num_steps)
        self.evaluation_loaders = {
            split: accelerator.prepare(task.evaluation_loader(split))
            for split in dict.fromkeys(task.evaluation_splits)
        }
        self.train_loader = prepare_train_loader(accelerator, train_loader)
        self.model, self.optimizer = accelerator.prepare(task.model, optimizer)
        accelerator.register_for_checkpointing(self.scheduler)
        self._sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        averages = self.arguments.ema
        if self._sharded and averages.averages:
            raise ValueError(
                f"weights cannot be averaged where processes share them out ({accelerator.distributed_type.value}): "
                "leave out --ema_decay and --num_averaged_epochs"
            )
        model = accelerator.unwrap_model(self.model)
        self.ema = averaged_model(model, averages, self.num_steps, self.steps_per_epoch)
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)

    def _check_best(self) -> None:
        if self.task.evaluation_splits[0] == "test":
            raise ValueError(
                "--load_best_model_at_end needs a validation split (--train_val_split): chosen on the test split, the "
                "best weights would have no honest result"
            )
        best_step = self.state.best_step
        if best_step is not None and not self.checkpointer.path_of(best_step).is_dir():
            raise ValueError(
                f"--load_best_model_at_end: the best checkpoint of the run to resume, of step {best_step}, is not in "
                f"{self.checkpointer.folder}: resume in its own --output_dir"
            )

    def _checkpointer(self, described: dict[str, Any]) -> Checkpointer:
        distributed_type = self.accelerator.distributed_type.value if self._sharded else "replicated"
        options = self.arguments.optimization
        facts = {
            "model": described["model"],
            "data": {name: split["fingerprint"] for name, split in described["data"]["splits"].items()},
            "layout": {"distributed_type": distributed_type, "torch_compile": options.torch_compile},
            "batch": {"global_batch_size": self.schedule.samples_per_step},
            "position": {
                "seed": self.arguments.run.seed,
                "gradient_accumulation_steps": options.gradient_accumulation_steps,
                **dealt_by(self.train_loader),
            },
        }
        limit = self.arguments.checkpoint.checkpoints_total_limit
        return Checkpointer(self.accelerator, self.output_dir, limit, facts)

    def train(self) -> None:
        """From the first step, or the resumed one, to a folder that holds the trained model and its records.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the last checkpoint is kept.
            SystemExit: SIGTERM or SIGINT came, with status 128 + signal, after a checkpoint was saved.
        """
        self._prepare_output_dir()
        self._saved_step = self.state.step
        if self.resume_path is not None:
            self.checkpointer.load(self.resume_path)
            self.record.go_on(self.output_dir)
            self._log(f"resuming from {self.resume_path}: step {self.state.step:,} of {self.num_steps:,}")
        self._write_record("running")
        # Of a run that was interrupted only the last part could be told, here and of the whole duration.
        measures = self.accelerator.is_main_process and self.resume_path is None
        self._energy = EnergyMeter(self.arguments.tracking.measure_energy if measures else None)
        if self.arguments.tracking.with_tracking:
            start_trackers(self.accelerator, self.arguments.tracking, self.arguments.to_dict())
        self._progress = tqdm(
            total=self.num_steps,
            initial=self.state.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if self.accelerator.is_main_process else True,
        )
        with Interruption(self.accelerator) as self._interruption, self._progress, logging_redirect_tqdm():
            try:
                while self.state.step < self.num_steps or self._unevaluated:
                    self._train_epoch()
                    self._end_epoch()
                self._finish()
            except BaseException as error:
                reason = {"error": f"{type(error).__name__}: {error}"} if isinstance(error, Exception) else {}
                with contextlib.suppress(OSError):  # a full disk must not hide what happened
                    self._write_record("interrupted", **reason)
                raise
        self.publisher.finish()
        self._log(
            f"The model, its card (README.md) and its records (run.json, curves.png) are in {self.output_dir}\n"
            f"Load it with\n\n{self.task.loading_lines(self.output_dir)}\n"
        )

    @property
    def _unevaluated(self) -> bool:
        """Whether the last step ended an epoch that a signal has kept from being evaluated."""
        return self.state.step > (self.state.epochs[-1]["step"] if self.state.epochs else 0)

    def _prepare_output_dir(self) -> None:
        if self.accelerator.is_main_process:
            if self.arguments.checkpoint.resume_from_checkpoint is None:
                shutil.rmtree(self.output_dir / CHECKPOINTS, ignore_errors=True)
            self.output_dir.mkdir(parents=True, exist_ok=True)
            clear_temporary(self.output_dir)
        self.accelerator.wait_for_everyone()

    def _train_epoch(self) -> None:
        state = self.state
        self.schedule.set_epoch(state.epoch)
        loader = loader_from(self.train_loader, state.epoch, state.batch)
        train_mode(self.model)
        self._meter = Meter(self.schedule.samples_per_batch * self.accelerator.num_processes)
        for batch in self._meter.timed(loader) if state.step < self.num_steps else ():
            self._train_batch(batch)
            if self.accelerator.sync_gradients:
                self._after_step()
                if state.step == self.num_steps:
                    break
        self._meter.stop()

    def _train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():  # what the task runs beside the model, such as teachers, too
                loss = self.task.training_step(self.model, batch)["loss"]
            self.accelerator.backward(loss)
            self._pending.append((loss.detach(), batch["sample_key"]))
            self.state.batch += 1
            if self.accelerator.sync_gradients:
                limit = self.arguments.optimization.max_grad_norm or float("inf")
                self._check_finite(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _check_finite(self, gradient_norm: torch.Tensor | None) -> None:
        """Adds the step's losses to the epoch's, or stops before the step when one is not finite.

        With a gradient scaler, infinite gradients are its business.
        """
        losses = torch.stack([loss for loss, _ in self._pending]).tolist()
        scaled = self.accelerator.scaler is not None
        # DeepSpeed clips by itself and gives no norm.
        norm = 0.0 if gradient_norm is None or scaled else float(gradient_norm)
        is_finite = all(map(math.isfinite, losses)) and math.isfinite(norm)
        # The norm need not tell of the others' losses, and all must stop together.
        if not self.accelerator.reduce(torch.tensor(float(not is_finite), device=self.accelerator.device)):
            self.state.loss_sum += sum(losses)
            self._pending.clear()
            return
        raise FloatingPointError(
            f"non-finite loss or gradient at step {self.state.step + 1}: loss {losses}, gradient norm "
            f"{norm}, learning rate {self.scheduler.get_last_lr()[-1]:g}, samples "
            f"{suspects(self._pending)}; "
            f"checkpoints are in {self.checkpointer.folder}"
        )

    def _after_step(self) -> None:
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.ema is not None:  # after skipped steps too: averages of epochs count them
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        state = self.state
        state.step += 1
        self._progress.update()
        memory = peak_memory_bytes(self.accelerator.device) / 2**30
        self._progress.set_postfix_str(
            f"loss {state.loss_sum / state.batch:.3f}, {self._speed()}, {memory:.1f} GiB", refresh=False
        )
        if state.step % self.arguments.tracking.logging_steps == 0:
            values = {"train_loss": state.loss_sum / state.batch, "learning_rate": self.scheduler.get_last_lr()[-1]}
            self.accelerator.log(values, step=state.step)
        if state.batch < len(self.train_loader) and state.step < self.num_steps:
            if self.arguments.checkpoint.due(state.step):
                self._save()
            self._heed_signal()

    def _heed_signal(self) -> None:
        if signal := self._interruption.signal():
            if self._saved_step != self.state.step:
                self._save()
            self._log(
                f"interrupted by signal {signal} at step {self.state.step:,}; go on with "
                "--resume_from_checkpoint latest"
            )
            raise SystemExit(128 + signal)

    def _save(self) -> None:
        self.state.training_seconds += self._meter.lap()
        # One process writes the state for all: it must hold the mean of their losses.
        loss_sum = torch.tensor(self.state.loss_sum, dtype=torch.float64, device=self.accelerator.device)
        self.state.loss_sum = float(self.accelerator.reduce(loss_sum, "mean"))
        self.checkpointer.save(self.state)
        self._saved_step = self.state.step

    def _speed(self) -> str:
        meter = self._meter
        return f"{meter.speed:,.0f} {self.task.sample_unit}/s, waiting for data {meter.wait_fraction:.0%} of the time"

    def _end_epoch(self) -> None:
        state, meter = self.state, self._meter
        split = self.task.evaluation_splits[0]
        metrics = self.task.compute_metrics(self.predict(split), detailed=False)
        totals = torch.tensor([state.loss_sum, state.batch], dtype=torch.float64, device=self.accelerator.device)
        loss_sum, batches = self.accelerator.reduce(totals).tolist()
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "learning_rate": self.scheduler.get_last_lr()[-1],
            "train_loss": loss_sum / batches,
            "metrics": metrics,
            "duration_s": meter.elapsed,
            f"{self.task.sample_unit}_per_second": meter.speed,
            "data_wait_fraction": meter.wait_fraction,
        }
        # An epoch that was cut short is told again when a later run completes it.
        state.epochs = [*(earlier for earlier in state.epochs if earlier["epoch"] != row["epoch"]), row]
        metric = metrics[self.task.best_metric]
        if state.best_metric is None or metric > state.best_metric:
            state.best_metric, state.best_step = metric, state.step
        if state.batch >= len(self.train_loader):
            state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        self._save()
        self._write_record("running")
        self.publisher.after_epoch(row["epoch"], self._save_model, self.checkpointer.path_of(state.step))
        numbers = {f"{split}_{name}": value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=state.step)
        self._log(
            f"epoch {row['epoch']:>3}: train loss {row['train_loss']:.4f}, {split} loss {metrics['loss']:.4f}, "
            f"{self.task.headline(metrics)}, {self._speed()}"
        )
        self._heed_signal()

    @property
    def final_model(self) -> torch.nn.Module:
        """What is evaluated and saved: the averaged weights where there are some and they are wanted."""
        if self.ema is not None and self.arguments.ema.use_ema_weights:
            return self.ema.module
        return self.accelerator.unwrap_model(self.model)

    def predict(self, split: str, *, detailed: bool = False) -> dict[str, np.ndarray]:
        """What the task's evaluation step gives for a split: each sample once, in order, on every process."""
        model = self.final_model.eval()
        step = partial(self.task.evaluation_step, model, detailed=detailed)
        return gather_predictions(self.accelerator, self.evaluation_loaders[split], step, self._heed_signal)

    def _save_model(self, folder: Path) -> None:
        self.task.save_pretrained(self.final_model, folder, None)
        copy_author_file(self.arguments.recipe_path, self.output_dir, folder)
        self.record.write(folder)

    def _write_record(self, status: str, **values: Any) -> None:
        if self.accelerator.is_main_process:
            self.record.update(status=status, epochs=self.state.epochs, **values)
            self.record.write(self.output_dir)

    def _finish(self) -> None:
        if self.arguments.checkpoint.load_best_model_at_end and self.state.best_step != self.state.step:
            self.checkpointer.load(self.checkpointer.path_of(self.state.best_step))
            self._log(f"taking the weights of step {self.state.best_step:,}, the best on validation")
        split = self.task.evaluation_splits[1]
        gathered = self.predict(split, detailed=True)
        metrics = self.task.compute_metrics(gathered, detailed=True)
        num_examples = len(next(iter(gathered.values())))
        durations = {"training": self.state.training_seconds}
        if self.resume_path is None:
            durations["total"] = time.perf_counter() - self.started
        result = {"split": split, "num_examples": num_examples, "metrics": metrics}
        # Gathering what the processes share out takes all of them.
        state_dict = self.accelerator.get_state_dict(self.model) if self._sharded else None
        if self.accelerator.is_main_process:
            staging = staging_folder(self.output_dir)
            self.task.save_pretrained(self.final_model, staging, state_dict)
            copy_author_file(self.arguments.recipe_path, self.output_dir, staging)
            result["samples"] = self.task.save_samples(gathered, split, staging)
            found = {"result": result, "duration_s": durations, **self.task.closing_records(metrics)}
            self.record.update(status="finished", epochs=self.state.epochs, **found, **self._energy.stop())
            self.record.write(staging)
            write_card(staging)
            move_files(staging, self.output_dir)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self._log(
            f"{split} {self.task.headline(metrics)} on {num_examples} "
            f"{self.task.sample_unit} after {durations['training']:.0f} s of training"
        )

    def _log(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.info(message)
