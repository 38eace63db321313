"""A Python process without this package, to see whether a model loads for those who do not have it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

_PROGRAM = Path(__file__).with_name("fresh_process_program.py")


class Loaded(NamedTuple):
    """What loading a model led to.

    `classes` are the Auto classes that loaded it; `difference` is the largest absolute difference of their outputs, on
    a fixed input, to those of the first model that the process has loaded.
    """

    classes: list[str]
    difference: float


class FreshProcess:
    """See `fresh_process`."""

    def __init__(self, process: subprocess.Popen, errors: IO[str]):
        self._process, self._errors = process, errors

    def load(self, source: str | os.PathLike, revision: str | None = None) -> Loaded:
        """Loads a folder, or a model of the Hub by its id, with every Auto class that its `auto_map` names.

        Raises:
            RuntimeError: it cannot be loaded; the message is the error of the other process.
        """
        request = {"source": os.fspath(source), "revision": revision}
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or '{"error": ""}')
        except BrokenPipeError:
            answer = {"error": ""}
        if "error" in answer:
            raise RuntimeError(answer["error"] or f"the process that loads it ended: {self._last_words()}")
        return Loaded(**answer)

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return "".join(self._errors.readlines()[-1:]).strip()


@contextmanager
def fresh_process(token: str | None = None) -> Iterator[FreshProcess]:
    """A process with empty caches of models and of code, in which `hf_vit` cannot be imported.

    **It executes the code in the models it loads.** It ends with the `with` statement.

    Args:
        token: of the Hub; the usual one when None.
    """
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as errors:
        caches = {"HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules"}
        environment = {
            **os.environ,
            **{name: str(Path(directory, folder)) for name, folder in caches.items()},
            **({"HF_TOKEN": token} if token else {}),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.read_text(encoding="utf-8")],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        try:
            yield FreshProcess(process, errors)
        finally:
            process.kill()
            process.communicate()
