"""Links of README and docs lead somewhere, and the commands they give are understood."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import PreTrainedConfig
from typer.testing import CliRunner

from hf_vit import HfDetrConfig, HfTransformerConfig, HfViTConfig, tasks, train
from hf_vit.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, *sorted(ROOT.glob("model_cards/*/README.md")), *sorted(ROOT.glob("benchmarks/results/*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"(?:accelerate launch(?: --config_file \S+)? )training/train\.py[^`\n|&]*")


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainings_parse(page, monkeypatch):
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(ROOT / "docs/examples/adding_a_task")])
    for command in COMMAND.findall(page.read_text()):
        launch, _, flags = command.partition("training/train.py")
        arguments = train.parse(shlex.split(flags))
        assert arguments.run.recipe in tasks.recipes()
        configuration = re.search(r"--config_file (\S+)", launch)
        assert configuration is None or (ROOT / configuration[1]).is_file()


def test_every_recipe_is_on_the_page_of_training():
    text = (ROOT / "docs" / "training.md").read_text()
    assert all(f"`{name}`" in text for name in tasks.recipes())


def test_verbs_and_options_of_hf_vit_exist():
    runner = CliRunner()
    for page in PAGES:
        for verb in set(re.findall(r"`hf-vit ([a-z]+)", page.read_text())):
            assert runner.invoke(app, [verb, "--help"]).exit_code == 0, verb
        for verb, option in re.findall(r"`hf-vit ([a-z]+) (--[a-z-]+) FOLDER`", page.read_text()):
            assert option in re.sub(r"\x1b\[[0-9;]*m", "", runner.invoke(app, [verb, "--help"]).output)


def test_every_field_of_the_configurations_is_on_the_page_of_models():
    text = (ROOT / "docs" / "models.md").read_text()
    for config in (HfViTConfig, HfTransformerConfig, HfDetrConfig):
        own = set(config.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
        missing = [name for name in sorted(own) if not name.startswith("_") and f"`{name}`" not in text]
        assert not missing, f"docs/models.md has a table of fields: add {missing} of {config.__name__}"
        assert all(f"`{name}`" in text for name in config().auto_map if name != "AutoConfig")
