"""A Python process of its own that talks to the loopback Hub and runs pieces of code one after the other."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
variables = {"__name__": "__main__"}
for line in sys.stdin:
    variables.pop("result", None)
    try:
        exec(json.loads(line), variables)
        answer = {"result": variables.get("result")}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
"""


class ClientError(Exception):
    """What the client's code raised, as `Type: message`."""


class Client:
    """A process in `folder`, which is also its home, started by `python` with only the Hub at `endpoint` in reach."""

    def __init__(self, folder: Path, endpoint: str, python: str = sys.executable, **environment: str):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        own = {
            "HOME": str(folder),
            "HF_HOME": str(folder / "huggingface"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [python, "-c", _PROGRAM],
            cwd=folder,
            env={**inherited, **own, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, code: str, **variables: Any) -> Any:
        """Executes code with the variables of all calls before and `variables`; returns what it leaves in `result`."""
        given = "".join(f"{name} = {value!r}\n" for name, value in variables.items())
        print(json.dumps(given + textwrap.dedent(code)), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]
