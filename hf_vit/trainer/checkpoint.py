"""Files that survive a crash at any instant: temporary name, fsync, rename. Checkpoints and what a run leaves."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from torch.utils.data import DataLoader

from hf_vit.config import Arguments, argument, check_range
from hf_vit.files import TEMPORARY, sync
from hf_vit.record import RUN_FILE
from hf_vit.trainer.loaders import dealt_by

CHECKPOINTS = "checkpoints"
STATE_FILE = "trainer_state.json"


@dataclass
class CheckpointArguments:
    _argument_group_name: ClassVar[str] = "Checkpoints"

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

    def __post_init__(self):
        if self.checkpointing_steps != "epoch" and not (
            self.checkpointing_steps.isdigit() and int(self.checkpointing_steps) > 0
        ):
            raise ValueError(
                f"--checkpointing_steps must be a positive number or 'epoch', found {self.checkpointing_steps!r}"
            )
        check_range("checkpoints_total_limit", self.checkpoints_total_limit, 1)

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
        """Whether the last step is one that an evaluated epoch ended with."""
        return self.step <= (self.epochs[-1]["step"] if self.epochs else 0)

    @property
    def best_epoch(self) -> int | None:
        """The epoch that ended with the best step."""
        return next((row["epoch"] for row in self.epochs if row["step"] == self.best_step), None)

    @property
    def losses(self) -> tuple[float, dict[str, tuple[float, float]]]:
        """Sums of this process over this epoch."""
        return self.loss_sum, self.terms

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

    def share(self, losses: Sequence[tuple[float, dict[str, tuple[float, float]]]]) -> None:
        """Take the means of what the processes have added up, each of them given."""
        count = len(losses)
        self.loss_sum = sum(loss_sum for loss_sum, _ in losses) / count
        names = {name for _, terms in losses for name in terms}
        pairs = {name: [terms[name] for _, terms in losses if name in terms] for name in sorted(names)}
        self.terms = {
            name: (sum(total for total, _ in found) / count, sum(number for _, number in found) / count)
            for name, found in pairs.items()
        }

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


def fsync_tree(folder: Path) -> None:
    """Every file and folder below `folder`, and itself, to the disk."""
    for directory, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(directory, name))
        sync(Path(directory))


def move_files(source: Path, target: Path) -> None:
    """The files of `source` replace those of the same name in `target`, each atomically, the records, which say that
    the run is finished, after all others.

    They may be read by whom the process's umask lets: safetensors makes files that are its user's alone.
    """
    fsync_tree(source)
    umask = os.umask(0)
    os.umask(umask)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: (file.name == RUN_FILE, file)):
        (source / file).chmod(0o666 & ~umask)
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
    for folder in {(target / file).parent for file in files} | {target}:
        sync(folder)
    shutil.rmtree(source)


def staging_folder(output_dir: Path) -> Path:
    """A new folder on the same file system, to be filled and then moved into place."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=output_dir))


def clear_temporary(output_dir: Path) -> None:
    """Removes what a killed run had not finished writing."""
    for folder in (output_dir, output_dir / CHECKPOINTS):
        for path in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare_output_dir(output_dir: Path, *, overwrite: bool, resume: bool) -> None:
    """Checks that a run may write here.

    Raises:
        ValueError: the folder is not empty and neither overwriting nor resuming was asked for.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {str(output_dir)!r} is a file")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (overwrite or resume):
        raise ValueError(
            f"--output_dir {str(output_dir)!r} is not empty: choose another, or add --overwrite_output_dir or "
            "--resume_from_checkpoint latest"
        )


def run_facts(
    described: Mapping[str, Any], schedule: Any, train_loader: DataLoader, arguments: Arguments, sharding: str | None
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
        },
    }


class Checkpointer:
    """Saves and restores a run under `output_dir/checkpoints/step_0000123`.

    Args:
        described: facts that a checkpoint must share with the run that resumes it: `model`, `data`, `layout` and,
            when it was saved within an epoch, `position`.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, total_limit: int, described: dict[str, Any]):
        self.accelerator = accelerator
        self.folder = output_dir / CHECKPOINTS
        self.total_limit = total_limit
        self.described = json.loads(json.dumps(described))
        if accelerator.is_main_process:
            self._put_back()
        accelerator.wait_for_everyone()

    def saved(self) -> list[Path]:
        """Whole checkpoints in the order in which they were saved, which after going back to one is not the steps'."""
        return sorted((file.parent for file in self.folder.glob(f"step_*/{STATE_FILE}")), key=_serial)

    def path_of(self, step: int) -> Path:
        return self.folder / f"step_{step:07d}"

    def save(self, state: TrainingState) -> None:
        """All processes call it; the checkpoint appears under its name only when it is whole and on the disk."""
        path = self.path_of(state.step)
        temporary = self.folder / f"{TEMPORARY}{path.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                serial = 1 + max(map(_serial, self.saved()), default=0)
                content = {"state": asdict(state), "run": self.described, "serial": serial}
                (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
                fsync_tree(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it would only be in the way
            raise
        if self.accelerator.is_main_process:
            doomed = [path] if path.exists() else []
            for old in doomed:
                os.replace(old, self._aside(old))
            os.replace(temporary, path)
            sync(self.folder)
            for old in self.saved()[: -self.total_limit]:
                if state.best_step is None or old != self.path_of(state.best_step):
                    os.replace(old, self._aside(old))
                    doomed.append(old)
            for aside in map(self._aside, doomed):
                (aside / STATE_FILE).unlink()
                shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _aside(self, path: Path) -> Path:
        """Where a checkpoint goes before it is removed, its state first: no part of one is ever taken for a whole."""
        return path.with_name(f"{TEMPORARY}{path.name}-removed")

    def _put_back(self) -> None:
        """A kill while a checkpoint was replaced by one of the same step has left it aside."""
        for aside in self.folder.glob(f"{TEMPORARY}step_*-removed"):
            path = aside.with_name(aside.name.removeprefix(TEMPORARY).removesuffix("-removed"))
            if (aside / STATE_FILE).is_file() and not path.exists():
                os.replace(aside, path)

    def find(self, wanted: str | None) -> Path | None:
        """The folder that `--resume_from_checkpoint` names; None for `latest` of a run that has not saved any yet, and
        where nothing is wanted.

        Raises:
            ValueError: there is no whole checkpoint there.
        """
        if wanted is None:
            return None
        if wanted == "latest":
            return self.saved()[-1] if self.saved() else None
        if not (Path(wanted) / STATE_FILE).is_file():
            raise ValueError(f"--resume_from_checkpoint {wanted!r} is not a checkpoint: it has no {STATE_FILE}")
        return Path(wanted)

    def read(self, path: Path) -> TrainingState:
        """The state that a checkpoint holds, after checking that this run can go on from it.

        Raises:
            ValueError: the checkpoint is of another architecture or other data, or lies within an epoch whose
                batches this run would draw otherwise.
        """
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        state, saved = TrainingState(**content["state"]), content["run"]
        for name, value in self.described.items():
            matters = name != "position" or state.batch > 0
            if matters and saved[name] != value:
                different = [key for key in value if saved[name].get(key) != value[key]]
                facts = ", ".join(f"{key} {saved[name].get(key)!r}, here {value[key]!r}" for key in different)
                raise ValueError(f"--resume_from_checkpoint {str(path)!r} is of another {name}: {facts}")
        return state

    def check_best(self, state: TrainingState, split: str) -> None:
        """Raise `ValueError` where the best weights could not be taken at the end.

        Args:
            split: the one that decides which are the best.
        """
        if split == "test":
            raise ValueError(
                "--load_best_model_at_end needs a validation split (--train_val_split): chosen on the test split, the "
                "best weights would have no honest result"
            )
        if state.best_step is not None and not self.path_of(state.best_step).is_dir():
            raise ValueError(
                f"--load_best_model_at_end: the best checkpoint of the run to resume, of step {state.best_step}, is "
                f"not in {self.folder}: resume in its own --output_dir"
            )

    def take_best(self, state: TrainingState) -> str:
        """Load the best epoch's weights, unless they are there; a sentence that says which epoch it is."""
        if state.best_step is not None and state.best_step != state.step:
            self.load(self.path_of(state.best_step))
        last = state.epochs[-1]["epoch"]
        return f"keeping the weights of epoch {state.best_epoch} of {last}, the best on validation"

    def load(self, path: Path) -> None:
        """Weights, optimizer, schedule, averages and generators of this process."""
        self.accelerator.load_state(str(path))


def _serial(path: Path) -> int:
    """The position of a checkpoint in the order of saving."""
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["serial"]
