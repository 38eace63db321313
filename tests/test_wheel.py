"""The built wheel, installed where there is no clone: it holds what it needs, trains, cards and studies."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from training_runs import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`installed(*words)`: what a command prints in an environment that has the wheel, over the packages of this one,
    run in an empty folder of its own."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    find = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    own = Path(subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip())
    packages = sysconfig.get_paths()["purelib"]
    (own / "others.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-index", "--no-deps"]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True)
    folder = tmp_path_factory.mktemp("elsewhere")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *words, cwd=folder):
        command = [str(python), *words] if program == "python" else [str(python.with_name(program)), *words]
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    assert Path(run("python", "-c", "import hf_vit; print(hf_vit.__file__)").strip()).is_relative_to(environment)
    return run


def test_it_holds_the_package_with_its_data_and_nothing_else(wheel):
    tracked = subprocess.run(["git", "ls-files", "hf_vit"], cwd=ROOT, capture_output=True, text=True)
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "hf_vit").rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if not name.partition("/")[0].endswith(".dist-info")} == files
    assert tracked.returncode or set(tracked.stdout.split()) <= files
    for needed in (
        "py.typed",
        "cards/base.md.j2",
        "tasks/translation/card.md.j2",
        "tasks/translation/recipes/dates.yaml",
    ):
        assert f"hf_vit/{needed}" in names


def test_it_trains_cards_and_studies(installed):
    installed("hf-vit", "train", "--num_processes", "1", "--cpu", *TINY, "--output_dir=run")
    run = json.loads((installed.folder / "run" / "run.json").read_text())
    assert (run["status"], run["recipe"], run["arguments"]["image_size"]) == ("finished", "digits", [8])
    assert run["command"].startswith("hf-vit train ")
    assert "the card says what the records say" in installed("hf-vit", "card", "run", "--check")

    study = {"title": "T", "recipe": "digits", "seeds": [0], "metrics": ["accuracy"], "variants": {"a": {}, "b": {}}}
    (installed.folder / "mine.yaml").write_text(yaml.safe_dump(study))
    assert len(installed("hf-vit", "study", "mine.yaml", "--dry_run").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["-m", "hf_vit.train"], [str(ROOT / "training" / "train.py")]],
    ids=["module", "script of a clone"],
)
def test_accelerate_launches_it(installed, words):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *words]
    assert "parameters" in installed("python", *launch, "--dry_run", *TINY)
