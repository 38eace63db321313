"""Checkpoints: saved whole or not at all, read back only as they were saved.

Of a run whose processes hold all weights, nothing that could run code is written or read: safetensors and JSON.
torch's sharded format and DeepSpeed's read pickles of their own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model

from hf_vit.files import TEMPORARY, chunks, digest, sync
from hf_vit.trainer.checkpoint import STATE_FILE, TrainingState
from hf_vit.trainer.output_dir import CHECKPOINTS, check_room, fsync_tree
from hf_vit.trainer.state_files import (
    generator_states,
    read_old_state,
    read_state,
    set_generators,
    write_state,
)

logger = logging.getLogger(__name__)

_WEIGHTS, _OPTIMIZER, _SCALER = "model.safetensors", "optimizer.safetensors", "scaler.safetensors"
_OLD_OPTIMIZER = "optimizer.bin"  # Accelerate's, whose other files are pickles too
_WRAPPERS = ("module.", "_orig_mod.")  # of models that processes share, or that are compiled, in Accelerate's files


@dataclass
class Resumable:
    """Contents of a checkpoint of a run.

    Args:
        model, optimizer: as Accelerate prepared them.
        averages: of the weights, where there are some.
        sharding: see `sharding_of`.
    """

    model: torch.nn.Module
    optimizer: Any
    schedule: Any = None
    averages: torch.nn.Module | None = None
    sharding: str | None = None

    @property
    def others(self) -> dict[str, Any]:
        """Schedule and averages by name, in the order in which version 0.1.0 numbered their files."""
        found = {"schedule": self.schedule, "averages": self.averages}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def num_bytes(self) -> int:
        """The size of a checkpoint, nearly: weights, their two moments and their average."""
        parameters = list(self.model.parameters())
        size = sum(each.numel() * each.element_size() for each in parameters)
        moments = 2 * sum(each.numel() * each.element_size() for each in parameters if each.requires_grad)
        return size + moments + (size if self.averages is not None else 0)


def sharding_of(accelerator: Accelerator) -> str | None:
    """How processes share the weights out, None if each has all of them."""
    kind = accelerator.distributed_type
    return kind.value if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) else None


class Checkpointer:
    """Saves and restores a run under `output_dir/checkpoints/step_0000123`.

    Args:
        described: facts that a checkpoint must share with the run that resumes it: `model`, `data`, `layout` and,
            when it was saved within an epoch, `position`.

    Raises:
        ValueError: there is no room for the checkpoints.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        total_limit: int,
        described: dict[str, Any],
        resumable: Resumable,
    ):
        self.accelerator = accelerator
        self.folder = output_dir / CHECKPOINTS
        self.total_limit = total_limit
        self.described = json.loads(json.dumps(described))
        self.resumable = resumable
        if resumable.sharding is None:
            check_room(output_dir, resumable.num_bytes * (total_limit + 1))  # one is written before one goes
        if accelerator.is_main_process:
            self._put_back()
        accelerator.wait_for_everyone()

    def saved(self) -> list[Path]:
        """Checkpoints in the order in which they were saved, which after going back to one is not the steps'; those
        whose record cannot be read first."""
        return sorted((file.parent for file in self.folder.glob(f"step_*/{STATE_FILE}")), key=_serial)

    def path_of(self, step: int) -> Path:
        return self.folder / f"step_{step:07d}"

    def save(self, state: TrainingState) -> None:
        """All processes call it; the checkpoint appears under its name only when it is whole and on the disk.

        Raises:
            OSError: it could not be written; those before it are kept.
        """
        path = self.path_of(state.step)
        temporary = self.folder / f"{TEMPORARY}{path.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self._write(temporary)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                serial = 1 + max(map(_serial, self.saved()), default=0)
                files = {name: digest(chunks(temporary / name)) for name in _files_of(temporary)}
                content = {"state": asdict(state), "run": self.described, "serial": serial, "files": files}
                (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
                fsync_tree(temporary)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it would only be in the way
            if isinstance(error, (OSError, RuntimeError)):
                kept = self.saved()
                before = f"; {kept[-1]} is kept" if kept else ""
                raise OSError(f"the checkpoint {path} could not be written: {error}{before}") from error
            raise
        if self.accelerator.is_main_process:
            self._put_in_place(temporary, path, state)
        self.accelerator.wait_for_everyone()

    def _put_in_place(self, temporary: Path, path: Path, state: TrainingState) -> None:
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
        """The folder that `--resume_from_checkpoint` names, whole: of `latest` the newest that is, and a line about
        each that was passed over; None for `latest` of a run that has not saved any yet, and where nothing is wanted.

        Raises:
            ValueError: there is no whole checkpoint there.
        """
        if wanted is None:
            return None
        if wanted != "latest":
            if not (Path(wanted) / STATE_FILE).is_file():
                raise ValueError(f"--resume_from_checkpoint {wanted!r} is not a checkpoint: it has no {STATE_FILE}")
            self._check_whole(Path(wanted))
            return Path(wanted)
        faults = []
        newest_first = self.saved()[::-1]
        for path in sorted(
            newest_first, key=lambda path: _serial(path) > 0
        ):  # first those that cannot be read, to tell
            try:
                self._check_whole(path)
            except ValueError as error:
                faults.append(str(error))
                if self.accelerator.is_main_process:
                    logger.warning(f"passing over a damaged checkpoint: {error}")
            else:
                return path
        if faults:
            raise ValueError(f"--resume_from_checkpoint latest: no checkpoint is whole: {'; '.join(faults)}")
        return None

    def _check_whole(self, path: Path) -> None:
        """Raise `ValueError` for the first file that is not as it was saved."""
        files = _record_of(path).get("files")
        if files is None:  # of version 0.1.0, which kept no digests
            if self.resumable.sharding is not None:
                raise ValueError(f"{path / STATE_FILE} holds no digests, without which pickles are not read")
            return
        for name, expected in files.items():
            if not (path / name).is_file():
                raise ValueError(f"{path / name} is missing")
            if digest(chunks(path / name)) != expected:
                raise ValueError(f"{path / name} is damaged: its SHA-256 is not the one that {STATE_FILE} tells")
        unknown = sorted(set(_files_of(path)) - set(files))
        if unknown:
            raise ValueError(f"{path / unknown[0]} is not of this checkpoint: {STATE_FILE} does not tell of it")

    def read(self, path: Path) -> TrainingState:
        """The state that a checkpoint holds, after checking that this run can go on from it.

        Raises:
            ValueError: the checkpoint is of another architecture or other data, or lies within an epoch whose
                batches this run would draw otherwise.
        """
        content = _record_of(path)
        state, saved = TrainingState(**content["state"]), content["run"]
        for name, value in self.described.items():
            matters = name != "position" or state.batch > 0
            facts = self._differences(saved[name], value) if matters else []
            if facts:
                raise ValueError(f"--resume_from_checkpoint {str(path)!r} is of another {name}: {', '.join(facts)}")
        return state

    def _differences(self, saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
        """Facts that differ. Fields of a model's config that either side does not know have their defaults there: a
        later version has more of them."""
        found = []
        for key in [*here, *(["sampling"] if "sampling" in saved and "sampling" not in here else [])]:
            before: Any = saved.get(key)
            now: Any = here.get(key)
            if key == "config" and isinstance(before, dict):
                defaults = json.loads(type(self._whole_model().config)().to_json_string(use_diff=False))
                found += [
                    f"config.{name} {old!r}, here {new!r}"
                    for name in {**before, **now}
                    if (old := before.get(name, defaults.get(name))) != (new := now.get(name, defaults.get(name)))
                ]
            elif before != now:
                found.append(f"{key} {before!r}, here {now!r}")
        return found

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
            self._check_whole(self.path_of(state.best_step))
            self.load(self.path_of(state.best_step))
        last = state.epochs[-1]["epoch"]
        return f"keeping the weights of epoch {state.best_epoch} of {last}, the best on validation"

    def _write(self, folder: Path) -> None:
        """This process's share of a checkpoint."""
        own, accelerator = self.resumable, self.accelerator
        if own.sharding is not None:
            accelerator.save_state(str(folder))
        elif accelerator.is_main_process:
            save_model(self._whole_model(), str(folder / _WEIGHTS))
            write_state(folder / _OPTIMIZER, own.optimizer.state_dict())
            if accelerator.scaler is not None:
                write_state(folder / _SCALER, accelerator.scaler.state_dict())
        if accelerator.is_main_process:
            for name, other in own.others.items():
                write_state(folder / f"{name}.safetensors", other.state_dict())
        states = {**generator_states(), "accumulated": accelerator.step}
        write_state(folder / _generators_file(accelerator.process_index), states)

    def _whole_model(self) -> Any:
        return self.accelerator.unwrap_model(self.resumable.model, keep_torch_compile=False)

    def load(self, path: Path) -> None:
        """Weights, optimizer, schedule, averages and generators of this process.

        Raises:
            ValueError: a file is damaged or missing; names it.
        """
        own, accelerator = self.resumable, self.accelerator
        if own.sharding is not None:
            accelerator.load_state(str(path))
        elif (path / _OLD_OPTIMIZER).is_file():
            self._load_old(path)
            return
        else:
            try:
                load_model(self._whole_model(), path / _WEIGHTS)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise ValueError(f"{path / _WEIGHTS} is damaged or missing: {error}") from error
            own.optimizer.load_state_dict(read_state(path / _OPTIMIZER))
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(read_state(path / _SCALER))
        for name, other in own.others.items():
            other.load_state_dict(read_state(path / f"{name}.safetensors"))
        generators = _generators_file(accelerator.process_index)
        if (path / generators).is_file() or generators in _record_of(path)["files"]:
            states = read_state(path / generators)
            accelerator.step = states.pop("accumulated")
            set_generators(states)
        else:  # a run of fewer processes saved it
            logger.info(f"process {accelerator.process_index} begins new random numbers: {path} holds none of it")

    def _load_old(self, path: Path) -> None:
        """The same from Accelerate's files, as version 0.1.0 wrote them."""
        own, accelerator = self.resumable, self.accelerator
        try:
            weights = load_file(path / _WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path / _WEIGHTS} is damaged or missing: {error}") from error
        for wrapper in _WRAPPERS:
            weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
        model = self._whole_model()
        missing, unknown = model.load_state_dict(weights, strict=False)
        named = dict(model.named_parameters(remove_duplicate=False))
        shared = named.keys() - dict(model.named_parameters()).keys()  # of tied weights one name is in the file
        if unknown or set(missing) - shared:
            raise ValueError(
                f"{path / _WEIGHTS} is of another model: {', '.join([*unknown, *missing][:5])} do not fit"
            )
        own.optimizer.load_state_dict(read_old_state(path / _OLD_OPTIMIZER))
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(read_old_state(path / "scaler.pt"))
        for number, other in enumerate(own.others.values()):
            other.load_state_dict(read_old_state(path / f"custom_checkpoint_{number}.pkl"))
        states = read_old_state(path / f"random_states_{accelerator.process_index}.pkl")
        accelerator.step = states["step"]
        set_generators(states)


def _generators_file(process_index: int) -> str:
    return f"random_states_{process_index}.safetensors"


def _files_of(folder: Path) -> list[str]:
    """Names of all files below a checkpoint but its record."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name != STATE_FILE)


def _record_of(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's record.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / STATE_FILE} cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"state", "run", "serial"} <= content.keys():
        raise ValueError(f"{path / STATE_FILE} is damaged: it does not tell state, run and serial")
    return content


def _serial(path: Path) -> int:
    """The position of a checkpoint in the order of saving; 0 of one whose record is damaged."""
    try:
        serial = _record_of(path)["serial"]
    except ValueError:
        return 0
    return serial if isinstance(serial, int) else 0
