"""A Python process of its own that talks to the loopback Hub and runs pieces of code one after the other."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_vit.isolated.fresh_process import FreshProcess
from hf_vit.isolated.fresh_process import ProcessError as ClientError

__all__ = ["LOGITS", "STRANGER", "Client", "ClientError", "push", "run_snippets"]
# Of someone without the package: what they do once, and how they ask `repo_id` for the logits of `image`.
STRANGER = """
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


class Client(FreshProcess):
    """A process in `folder`, which is also its home, started by `python` with only the Hub at `endpoint` in reach;
    modules in `hidden` cannot be imported there."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        python: str = sys.executable,
        hidden: Sequence[str] = (),
        **environment: str,
    ):
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
        super().__init__(folder, {**inherited, **own, **environment}, hidden=hidden, python=python)

    def run(self, code: str, **variables: Any) -> Any:
        return super().run(textwrap.dedent(code), **variables)


def push(author: Client, folder: Path, repo_id: str, **options: Any) -> str:
    """Pushes from a process that knows `hf_vit.hub` as `hub`, without loading the model; returns the commit's hash."""
    code = "result = hub.push(folder, hub.Destination(**destination), load=False).oid"
    return author.run(code, folder=str(folder), destination={"repo_id": repo_id, **options})


def run_snippets(client: Client, folder: Path, snippets: Iterable[str]) -> dict[str, str]:
    """Outputs of each snippet of a card for the client, beside the sample images of the card's folder."""
    for sample in folder.glob("sample_*"):
        shutil.copy(sample, client.folder)
    return {code: client.output_of(code) for code in snippets}
