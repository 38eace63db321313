"""The site of the documentation lists every page, its links lead somewhere, and its notebooks run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
VERBS = ROOT / "docs" / "verbs"


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_listed_and_every_link_leads_somewhere(builder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(builder, "help_of", lambda verb: asked.append(verb) or f"Usage: hf-vit {verb}")
    builder.stage(tmp_path)
    configuration = (ROOT / "docs" / "zensical.toml").read_text("utf-8")
    assert builder.unlisted(tmp_path, configuration) == []
    assert "Usage: hf-vit predict" in (tmp_path / "docs/verbs/predict.md").read_text("utf-8")
    assert (tmp_path / "docs/notebooks/explain.md").is_file()
    assert sorted(asked) == sorted(page.stem for page in VERBS.glob("*.md") if page.stem != "completion")
    (tmp_path / "more.md").write_text("# More")
    assert builder.unlisted(tmp_path, configuration) == ["more.md"]
    with pytest.raises(ValueError, match=r"README.md: there is no none.md"):
        builder.staged(Path("README.md"), "[a](none.md)", set())
    assert builder.staged(Path("README.md"), "[code](hf_vit/models)", set()) == "code"


def test_every_verb_has_a_page_and_its_help_there(builder):
    from typer.main import get_command

    from hf_vit.cli import app

    assert {page.stem for page in VERBS.glob("*.md")} == {*get_command(app).commands, "completion"}
    text = builder.help_of("embed")
    assert text.startswith("Usage: hf-vit embed [OPTIONS]") and "--batch-size" in text
    for name in ("train", "study"):
        assert builder.help_of(name).startswith(f"usage: hf-vit {name} ")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_as_they_ran(notebook):
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds and "error" not in kinds and notebook.stat().st_size < 1_000_000
    assert "/tmp/" not in notebook.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(notebook, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    content = nbformat.read(notebook, as_version=4)
    folder = {"metadata": {"path": str(notebook.parent)}}
    NotebookClient(content, timeout=1200, kernel_name="python3", resources=folder).execute()


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--output_dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    page = (tmp_path / "site/docs/api/everyday.html").read_text("utf-8")
    assert "top_k" in page and (tmp_path / "site/index.html").is_file()
