"""Runs a saved model in a process of its own to learn what its card says about using it.

The process sees the folder alone, under the name its users will call it by, and is told nothing of this package, so a
snippet that works here works for a stranger.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from hf_vit.cards.facts import CardFacts
from hf_vit.cards.records import fingerprint
from hf_vit.models.tested_versions import range_of_code

KEY = "card"  # of run.json
TIMEOUT_S = 600
_PROGRAM = Path(__file__).with_name("measure_program.py")


def is_measured(folder: Path, facts: CardFacts) -> bool:
    """Whether the records hold a measurement of the model as it is in `folder` and of the card's own snippets."""
    outputs = facts.measured.get("outputs", {})
    known = all(example.code in outputs for example in facts.examples)
    return known and facts.measured.get("files_sha256") == fingerprint(folder)


def measure(folder: Path, facts: CardFacts) -> dict | None:
    """Executes the card's snippets, counts the model's operations, and looks at its attention and positions.

    **Executes the code in `folder`.**

    Returns:
        `files_sha256` (see `records.fingerprint`), `tested_transformers` (the oldest and the newest version that the
        folder's code says it was tested with, or None), `outputs` (what each snippet printed, by its code),
        `input_shape` (C, H, W), `flops` of one forward pass on one example (a multiplication and an addition count as
        two) and, for a model of this package, `num_patches`, `num_prefix_tokens`, `attention` (for each of
        `facts.pictures` its `file` and `maps`, by title) and `positions` (`kind` and `maps`). None when the model
        could not be run; a warning then says why.
    """
    request = {
        "repo_id": facts.repo_id,
        "task": facts.task,
        "snippets": [example.code for example in facts.examples],
        "pictures": facts.pictures,
        "package_root": str(Path(__file__).parents[2]),
    }
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        stand_in = directory / facts.repo_id
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.symlink_to(folder.resolve(), target_is_directory=True)
        for name in facts.example_files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, directory / name)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",  # a GPU may be full of the training that this follows
            "HF_MODULES_CACHE": str(directory / ".modules"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            process = subprocess.run(
                [sys.executable, "-c", _PROGRAM.read_text(encoding="utf-8")],
                input=json.dumps(request),
                cwd=directory,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                timeout=TIMEOUT_S,
            )
            process.check_returncode()
        except subprocess.SubprocessError as error:
            reason = (error.stderr or "").strip().splitlines()[-1:] or [str(error)]
            warnings.warn(f"the card shows no output of its snippets: {reason[0]}", stacklevel=3)
            return None
    code = {"tested_transformers": range_of_code(folder)}
    return {"files_sha256": fingerprint(folder), **code, **json.loads(process.stdout)}
