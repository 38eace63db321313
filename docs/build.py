"""Builds the site of the documentation: `python docs/build.py`, with the extra `docs`, writes it into `site`.

The pages are those that are read in a clone, and lie in the site as they do there, so that their links are the same.
What is made on the way: the help of each verb, from the command line itself; notebooks as pages; the API, from
docstrings. A link or an anchor that leads nowhere is an error, and so is a page that the navigation lacks.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "docs/**/*.png", "docs/**/*.css"),
    *("model_cards/*/README.md", "model_cards/*/*.png", "benchmarks/results/*.md", "benchmarks/results/*.png"),
)
NOTEBOOKS = "docs/notebooks/*.ipynb"
_HELP = re.compile(r"<!-- help of hf-vit (\w+) -->")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?!https?:|#)[^)\s#]+)(#[^)\s]*)?\)")


def help_of(verb: str) -> str:
    """What `hf-vit VERB --help` prints, 88 columns wide."""
    from typer.testing import CliRunner

    from hf_vit.cli import app

    result = CliRunner().invoke(app, [verb, "--help"], prog_name="hf-vit", env={"COLUMNS": "88", "NO_COLOR": "1"})
    if result.exit_code:
        raise ValueError(f"`hf-vit {verb} --help` failed: {result.output}")
    return result.output.strip()


def staged(page: Path, text: str, held: set[Path]) -> str:
    """The text of a page as the site has it: help in the place of its mark; links to folders and to code, which the
    site does not hold, as words.

    Raises:
        ValueError: a link leads to nothing.
    """

    def link(match: re.Match[str]) -> str:
        target = (ROOT / page.parent / match[3]).resolve()
        if not target.exists():
            raise ValueError(f"{page}: there is no {match[3]}")
        return match[0] if target.relative_to(ROOT) in held else match[2]

    text = _LINK.sub(link, text)
    return _HELP.sub(lambda match: f"```text\n{help_of(match[1])}\n```", text)


def stage(folder: Path) -> None:
    """Copies the pages, and what they show, into a folder."""
    files = {path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)}
    notebooks = {path.relative_to(ROOT) for path in ROOT.glob(NOTEBOOKS)}
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            target.write_text(staged(file, (ROOT / file).read_text("utf-8"), files | notebooks), "utf-8")
        else:
            shutil.copyfile(ROOT / file, target)
    for notebook in notebooks:
        write_notebook(notebook, folder)


def write_notebook(notebook: Path, folder: Path) -> None:
    """Writes a notebook, with its outputs, as a page, and its pictures beside it."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(ROOT / notebook))
    target = (folder / notebook).with_suffix(".md")
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, content in resources["outputs"].items():
        own_name = f"{notebook.stem}_{name}"
        text = text.replace(f"]({name})", f"]({own_name})")
        target.with_name(own_name).write_bytes(content)
    target.write_text(text, "utf-8")


def unlisted(folder: Path, configuration: str) -> list[str]:
    """The pages that the navigation lacks."""
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    return sorted(page for page in pages if f'"{page}"' not in configuration)


def build(site: Path) -> None:
    """Builds the site into a folder, whose content it replaces.

    Raises:
        ValueError: a link leads nowhere, or the navigation lacks a page.
    """
    configuration = (ROOT / "docs" / "zensical.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        stage(folder / "pages")
        missing = unlisted(folder / "pages", configuration)
        if missing:
            raise ValueError(f"docs/zensical.toml must list every page, it lacks {', '.join(missing)}")
        (folder / "zensical.toml").write_text(configuration, "utf-8")
        (folder / "hf_vit").symlink_to(ROOT / "hf_vit")  # whose docstrings are read
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout, end="")
        if done.returncode:
            raise ValueError("the site was not built, see above")
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(folder / "site", site)


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the site of the documentation.")
    parser.add_argument("--output_dir", type=Path, default=Path("site"), help="Where to. (default: %(default)s)")
    site = parser.parse_args().output_dir
    try:
        build(site)
    except ValueError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    print(f"{site}/index.html")


if __name__ == "__main__":
    main()
