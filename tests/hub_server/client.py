"""A Python process of its own that talks to the loopback Hub and runs pieces of code one after the other."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
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
# Of someone without the package: what they do once, and how they ask `repo_id` for the logits of `image`.
STRANGER = """
import sys
sys.modules["hf_vit"] = None
import contextlib, io, json
import torch, transformers
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor, pipeline
options = {"trust_remote_code": True}
processor = AutoImageProcessor.from_pretrained(repo_id)
image = Image.open(hf_hub_download(repo_id, "sample_0.png"))
"""
LOGITS = """
model = transformers.AutoModelForImageClassification.from_pretrained(repo_id, **options, **revision)
result = model(**processor(image, return_tensors="pt")).logits[0].tolist()
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


def push(author: Client, folder: Path, repo_id: str, **options: Any) -> str:
    """Pushes from a process that knows `hf_vit.hub` as `hub`, without loading the model; returns the commit's hash."""
    code = "result = hub.push(folder, hub.Destination(**destination), load=False).oid"
    return author.run(code, folder=str(folder), destination={"repo_id": repo_id, **options})


def run_snippets(client: Client, folder: Path, snippets: Iterable[str]) -> dict[str, str]:
    """What each snippet of a card prints for the client, beside the sample images of the card's folder."""
    for sample in folder.glob("sample_*"):
        shutil.copy(sample, client.folder)
    return client.run(
        """
        result = {}
        for code in snippets:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, {})
            result[code] = printed.getvalue()
        """,
        snippets=list(snippets),
    )
