"""Tasks that an installed package brings by an entry point are found, in loader workers' processes too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "adding_a_task" / "digit_rotation"
# The second process starts anew, as workers and ranks may.
PROGRAM = """
import multiprocessing
from hf_vit import tasks

def found(_):
    from hf_vit import tasks
    return "digit_rotation" in tasks.names(), tasks.folder_of("digit_rotation").parent.name

if __name__ == "__main__":
    print(found(0), multiprocessing.get_context("spawn").Pool(1).map(found, [0])[0])
"""


def test_an_entry_point_brings_tasks(tmp_path):
    package = tmp_path / "their_tasks"
    shutil.copytree(EXAMPLE, package / "digit_rotation")
    (package / "__init__.py").touch()
    facts = tmp_path / "their_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[hf_vit.tasks]\ntheirs = their_tasks\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_VIT_TASKS_PATH", None)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == f"{(True, 'their_tasks')} {(True, 'their_tasks')}", done.stderr[-2000:]
