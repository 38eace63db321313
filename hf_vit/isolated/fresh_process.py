"""A Python process without this package, to see what a model does for those who do not have it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hf_vit

_SERVING_PROGRAM, _LOADING_PROGRAM = (
    Path(__file__).with_name(f"{name}_program.py").read_text(encoding="utf-8") for name in ("serving", "loading")
)


class ProcessError(RuntimeError):
    """Error that the code of another process raised, as `Type: message`, or how that process ended."""


class Loaded(NamedTuple):
    """Result of loading a model.

    `classes` are the Auto classes that loaded it; `difference` is the largest absolute difference of their outputs, on
    a fixed input, to those of the first model that the process has loaded.
    """

    classes: list[str]
    difference: float


class FreshProcess:
    """A Python process that executes pieces of code one after the other; ends with a `with` statement.

    Standard input is closed to that code, and what it prints goes nowhere but into `output_of`.

    Args:
        folder: where it works.
        environment: all of its environment variables.
        hidden: names of modules that cannot be imported there.
        python: the interpreter.
        timeout_s: it is ended after so many seconds.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        hidden: Sequence[str] = (),
        python: str = sys.executable,
        timeout_s: float | None = None,
    ):
        self.folder = folder
        self._timeout_s = timeout_s
        self._loads = False
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - as the process
        self._process = subprocess.Popen(
            [python, "-c", _SERVING_PROGRAM, *hidden],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        self._timer = threading.Timer(timeout_s or 0, self._process.kill)
        if timeout_s is not None:
            self._timer.start()

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def run(self, code: str, **variables: Any) -> Any:
        """Executes code, which sees `variables` and those of all calls before; both ways what JSON can hold goes.

        Returns:
            What the code leaves in the variable `result`.

        Raises:
            ProcessError: it raised something, or the process ended.
        """
        output: Any = self._process.stdout
        try:
            print(json.dumps({"code": code, "variables": variables}), file=self._process.stdin, flush=True)
            answer = json.loads(output.readline() or '{"ended": true}')
        except BrokenPipeError:
            answer = {"ended": True}
        if "result" not in answer:
            raise ProcessError(answer.get("error") or f"the process ended: {self._last_words()}")
        return answer["result"]

    def output_of(self, program: str) -> str:
        """Return what a program prints that knows nothing of the code executed before.

        Raises:
            ProcessError: it raised something, or the process ended.
        """
        return self.run("result = output_of(program)", program=program)

    def let_in(self) -> None:
        """From now on this package can be imported there."""
        root = str(Path(hf_vit.__file__).parents[1])
        self.run("import sys\nsys.modules.pop('hf_vit', None)\nsys.path.append(root)", root=root)

    def load(self, source: str | os.PathLike, revision: str | None = None) -> Loaded:
        """Loads a folder, or a model of the Hub by its id, with every Auto class that its `auto_map` names.

        Raises:
            ProcessError: it cannot be loaded; the message is the error of the other process.
        """
        if not self._loads:
            self.run(_LOADING_PROGRAM)
            self._loads = True
        return Loaded(**self.run("result = load(source, revision)", source=os.fspath(source), revision=revision))

    def _last_words(self) -> str:
        self._process.wait()
        if self._timeout_s is not None and not self._timer.is_alive():
            return f"it took more than {self._timeout_s:g} s"
        self._errors.seek(0)
        return "".join(self._errors.readlines()[-1:]).strip()


@contextmanager
def fresh_process(
    folder: str | os.PathLike | None = None,
    name: str | None = None,
    *,
    token: str | None = None,
    hidden: Sequence[str] = (),
    timeout_s: float | None = None,
    **environment: str,
) -> Iterator[FreshProcess]:
    """A process with empty caches of models and of code, in which `hf_vit` cannot be imported.

    It works in an empty folder, and **executes the code in the models it loads.**

    Args:
        folder: the only thing there, under the path `name`, such as an id on the Hub; its own name when None.
        token: of the Hub; the usual one when None.
        hidden: more modules that cannot be imported.
        timeout_s: it is ended after so many seconds.
        environment: variables beside those of this process, such as `HF_HUB_OFFLINE="1"`.
    """
    with tempfile.TemporaryDirectory() as directory:
        work, caches = Path(directory, "work"), Path(directory, "caches")
        work.mkdir()
        if folder is not None:
            _show(Path(folder).resolve(), work / (name or Path(folder).resolve().name))
        environment = {
            **os.environ,
            "HF_HUB_CACHE": str(caches / "hub"),
            "HF_MODULES_CACHE": str(caches / "modules"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"HF_TOKEN": token} if token else {}),
            **environment,
        }
        options: dict[str, Any] = {"hidden": ("hf_vit", *hidden), "timeout_s": timeout_s}
        with FreshProcess(work, environment, **options) as process:
            yield process


def _show(folder: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(folder, target_is_directory=True)
    except OSError:  # not everyone may make links on Windows
        shutil.copytree(folder, path)
