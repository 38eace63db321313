"""Runs a saved model in a process of its own to learn what its card says about using it.

The process sees the folder alone, under the name its users will call it by, and knows nothing of this package, so a
snippet that works here works for a stranger. Only when all have worked, the package is let in, and the task's
`measure.py` looks into the model.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

from hf_vit import tasks
from hf_vit.cards.facts import CardFacts
from hf_vit.fingerprint import fingerprint
from hf_vit.isolated.fresh_process import ProcessError, fresh_process
from hf_vit.models.tested_versions import range_of_code

KEY = "card"  # of run.json
TIMEOUT_S = 600


def is_measured(folder: Path, facts: CardFacts) -> bool:
    """Whether the records hold a measurement of the model as it is in `folder` and of the card's own snippets."""
    known = not facts.has_inputs or all(example.code in facts.measured.outputs for example in facts.examples)
    return known and facts.measured.files_sha256 == fingerprint(folder)


def measure(folder: Path, facts: CardFacts) -> dict[str, Any] | None:
    """Executes the card's snippets, and what the task measures of its models.

    **Executes the code in `folder`.** A task's `measure.py` is a program without imports from its package at the head
    that defines `measure(repo_id, attended) -> dict`, which is given `facts.attended`.

    Returns:
        The content of the record's `card`, see `record.Measurement` and the task's. None when the model could not be
        run; a warning then says why.
    """
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # a GPU may be full of the training before
    program = tasks.folder_of(facts.task) / "measure.py"
    try:
        with fresh_process(folder, facts.repo_id, timeout_s=TIMEOUT_S, **environment) as process:
            for name in facts.example_files:
                (process.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, process.folder / name)
            examples = facts.examples if facts.has_inputs else []
            measured = {"outputs": {example.code: process.output_of(example.code) for example in examples}}
            if program.is_file():
                process.let_in()
                process.run(program.read_text(encoding="utf-8"))
                found = process.run(
                    "result = measure(repo_id, attended)", repo_id=facts.repo_id, attended=facts.attended
                )
                measured.update(found)
    except ProcessError as error:
        warnings.warn(f"the card shows no output of its snippets: {error}", stacklevel=3)
        return None
    return {"files_sha256": fingerprint(folder), "tested_transformers": list(range_of_code(folder) or ()), **measured}
