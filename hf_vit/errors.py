"""Errors as our programs tell them: one line that says what to do, and exit status 2.

A user's data, models, recipes and the Hub fail in ways that a sentence explains; for these, and for no others, the
traceback is shown only when `--debug` is typed or `HF_VIT_DEBUG=1` is set. Any other exception is a fault of the
program and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import NoReturn

DEBUG_FLAG = "--debug"
DEBUG_VARIABLE = "HF_VIT_DEBUG"
DEBUG_HELP = f"{DEBUG_FLAG}, or {DEBUG_VARIABLE}=1 in the environment, shows the traceback of an error."

# Of these packages every error is about data, a file or the Hub; this one's are of its own classes.
_ROOTS = {"hf_vit", "datasets", "huggingface_hub", "httpx", "httpx2", "safetensors", "pyarrow", "PIL"}
_PICKLE = "weights in a pickle that is damaged or holds more than tensors are not read, for it may run code: save "
_PICKLE += "them as safetensors where you trust them"
_CACHES = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE")  # instead of folders in HF_HOME
_LACKING = re.compile(r"Can't load image processor for '(.*?)'\. ")  # of transformers, which goes on with guesses
_WORKER = "Original Traceback (most recent call last):"  # torch's, in the message of an error of a loader's worker


@contextmanager
def told() -> Iterator[None]:
    """A program: what it raises within becomes a line `PROGRAM: error: ...` on standard error and an exit status, 2 of
    errors that a user can mend, 130 of an interruption. A reader that leaves (`| head`) ends it quietly.

    The program's name is `sys.argv[0]`'s, and `--debug` is taken from `sys.argv`.
    """
    _take_debug_flag()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # while a reader that has left can still be told from a fault
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError as error:
        if not _reader_has_left():
            tell(error)
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())  # what is left to write, at the interpreter's end
        sys.exit(1)
    except Exception as error:
        if not is_told(error):
            raise
        tell(error)


def tell(error: BaseException) -> NoReturn:
    """Ends the program with the line of an error, the last that it writes, and exit status 2."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    _end(f"error: {message_of(error)}", 2)


def is_told(error: BaseException) -> bool:
    """Whether an error's message says all that helps; another's traceback is wanted."""
    if isinstance(error, (ValueError, OSError, FloatingPointError, UnpicklingError)):
        return True
    return any(kind.__module__.partition(".")[0] in _ROOTS for kind in type(error).__mro__)


def message_of(error: BaseException) -> str:
    """The message of an error on one line; the listed points of one are parted by semicolons."""
    text = _PICKLE if isinstance(error, UnpicklingError) else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: "
        text += error.strerror + _remedy()
    lacking = _LACKING.match(text)
    if lacking and Path(lacking[1]).is_dir():
        text = f"{lacking[1]!r} has no image processor: put the preprocessor_config.json of its training there"
    if _WORKER in text:
        text = re.split(rf"\n(?:\w+\.)*{type(error).__name__}: ", text)[-1]
    if error.__cause__ is not None and type(error).__module__.startswith("datasets."):
        text = f"{text.rstrip('.')}: {message_of(error.__cause__)}"  # which alone says what is wrong with the data
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = "".join(f"; {line[2:]}" if line.startswith("- ") else f" {line}" for line in lines)
    return line.replace(":; ", ": ").lstrip(" ;") or type(error).__name__


def _remedy() -> str:
    """What to do where the folders in which libraries of Hugging Face keep what they read cannot be written, else
    nothing."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folders = {"HF_HOME": home, **{name: os.environ[name] for name in _CACHES if os.environ.get(name)}}
    for name, folder in folders.items():
        path = Path(os.path.expanduser(folder))
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError:
            return f" ({path} cannot be written, in which data and models are kept: set {name} to a folder that can)"
    return ""


def _take_debug_flag() -> None:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    if DEBUG_FLAG in sys.argv[1:end]:
        sys.argv[1:end] = [word for word in sys.argv[1:end] if word != DEBUG_FLAG]
        os.environ[DEBUG_VARIABLE] = "1"  # for the processes that this one starts, too


def _end(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # there may be nobody left to read it
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.exit(status)


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads, rather than another one broken."""
    if not hasattr(select, "poll"):  # on Windows
        return True
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
