"""Files that are whole after a crash at any instant, and digests."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

TEMPORARY = ".tmp-"  # begins the names of what is not written yet


def write_atomically(path: Path, content: bytes) -> Path:
    """`path` holds either what it held before or `content`, whatever happens; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        sync(path.parent)
    return path


def sync(path: Path) -> None:
    """Puts a file or the list of a folder's files on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_folder(folder: str | os.PathLike[str]) -> None:
    """Raises `ValueError` unless there is no such folder, or an empty one."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must be a new or an empty one, got {str(folder)!r}")


def write_folder(folder: Path, write: Callable[[Path], Any]) -> Path:
    """The new folder that `write` fills, written beside its place and moved there when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as directory:
        stage = Path(directory, folder.name)
        write(stage)
        os.replace(stage, folder)
    return folder


def read_utf8(path: Path) -> str:
    """The text in a file, without the byte-order mark that it may begin with.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it with that encoding") from None


def check_model_source(argument: str, name: str) -> None:
    """Raises `ValueError` for a path without a folder, which transformers would take for an id on the Hub, and for a
    folder with damaged weights or settings, by the file's name.

    Args:
        argument: what the user typed the name for.
        name: a folder, or NAMESPACE/NAME on the Hub.
    """
    first, *others = Path(name).parts or (name,)
    is_path = first in (".", "..", "~", os.sep) or name.startswith("./") or len(others) > 1
    is_path = is_path or (bool(others) and Path(first).is_dir())  # outputs/my_model
    if is_path and not Path(name).exists():
        raise ValueError(f"{argument}: there is no folder {name!r}")
    for path in sorted(Path(name).glob("*config.json")):
        read_object(path, argument)
    for path in sorted(Path(name).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{argument}: {path} cannot be read: it is damaged or not whole ({error})") from None


def read_object(path: Path, argument: str = "folder") -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        argument: what the user typed the folder of it for.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = json.loads(read_utf8(path))
    except ValueError as error:
        raise ValueError(f"{argument}: {path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{argument}: {path} must hold a JSON object, found {type(content).__name__}")
    return content


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over all parts, one after the other, in hexadecimal."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file of any size, piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
