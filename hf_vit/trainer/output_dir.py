"""The folder that a run writes: its lock, its room, and files that appear there whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import shutil
import tempfile
from pathlib import Path

from hf_vit.files import TEMPORARY, sync
from hf_vit.record import RUN_FILE

CHECKPOINTS = "checkpoints"

_locks: dict[Path, int] = {}  # descriptors of the folders that this process has locked


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


def lock(output_dir: Path) -> None:
    """Keep other runs out of a folder that exists for as long as this process lives, however it ends.

    Raises:
        ValueError: another run has the folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    path = output_dir.resolve()
    if path in _locks:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"--output_dir {str(output_dir)!r} is in use by another run: wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _locks[path] = descriptor


def unlock() -> None:
    """Give up the folders that this process has locked."""
    while _locks:
        os.close(_locks.popitem()[1])


if hasattr(os, "register_at_fork"):  # a loader's worker must not hold them longer than its parent lives
    os.register_at_fork(after_in_child=unlock)


def check_text_encoding() -> None:
    """Raise `ValueError` where Python, and so the libraries that save a model, writes texts in another encoding than
    UTF-8: class names and cards could not be written when the training is over."""
    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if encoding != "utf-8":
        raise ValueError(f"this Python writes text as {encoding}: set the environment variable PYTHONUTF8=1")


def check_room(output_dir: Path, num_bytes: int) -> None:
    """Raise `ValueError` if fewer bytes are free where a run is going to write."""
    existing = next(folder for folder in (output_dir, *output_dir.resolve().parents) if folder.is_dir())
    with contextlib.suppress(OSError):  # a file system that does not say
        free = shutil.disk_usage(existing).free
        if free < num_bytes:
            raise ValueError(
                f"--output_dir {str(output_dir)!r}: the run's checkpoints need {num_bytes / 2**20:,.0f} MiB, and "
                f"{free / 2**20:,.0f} MiB are free there"
            )
