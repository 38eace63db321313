"""Every block of code and every command in a sentence or a table of README and docs runs, and prints what the page
says; or the page says why it is not run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from annotated_folders import write_roboflow
from documentation.command_server import link_commands
from documentation.snippets import COMMANDS, DATA, Block, agrees, blocks_of, statements_of
from hub_server.git import GitRepository
from hub_server.server import Hub, Repository, User
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = [
    folder / "README.md" for folder in sorted((ROOT / "model_cards").iterdir()) if any(folder.glob("*.safetensors"))
]
BLOCKS = {page: blocks_of(page) for page in (*PAGES, *CARDS)}
TO_AN_AUTHOR = (
    "A block of code in the documentation is either run by this test or says why not. Languages that are run: python, "
    f"{', '.join(COMMANDS)}; those that hold data: {', '.join(DATA)}; a block without a language, or of text, is what "
    "the block before it prints, and follows a paragraph that ends in `which prints`. Anything else, and what needs "
    "hours, a network or another machine, has `<!-- not run: needs ... -->` on the line before it; so it is "
    "with commands in sentences and in the cells of tables, where the mark follows."
)
NEEDS_PACKAGE = ["hf_vit.train", "hf_vit.trainer.loop", "hf_vit.cli", "hf_vit.hub.doctor", "transformers.pipelines"]
NEEDS_NOTHING_OF_OURS = ["torch", "transformers.pipelines"]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page):
    for block in BLOCKS[page]:
        known = block.is_run or block.is_output or block.language in DATA or block.needs
        assert known, f"{page.name}:{block.line}: ```{block.language}\n{TO_AN_AUTHOR}"
        if block.language in ("yaml", "json") and not block.needs:
            yaml.safe_load(block.text)


def serve(folder, name, modules, environment):
    path = folder / name
    command = [sys.executable, str(Path(__file__).with_name("command_server.py")), str(path), *modules]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert process.stdout.readline() == "ready\n"
    link_commands(folder / f"{name}_commands", path)
    return process, folder / f"{name}_commands"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment of somebody who is logged in at a Hub on the loopback, which has a model of another."""
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub(folder / "repositories", {"hf_me": User("me")})
    (folder / "objects").mkdir()
    repository = Repository("you/digits", False, GitRepository(folder / "git"), folder / "objects")
    files = {path.name: path.read_bytes() for path in (ROOT / "model_cards" / "digits").iterdir() if path.is_file()}
    repository.git.commit("refs/heads/main", None, files, [], "you", "A model")
    hub.repositories[repository.id] = repository
    own = {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_me", "HF_HUB_OFFLINE": "0"}
    yield {**own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    hub.stop()


@pytest.fixture(scope="module")
def commands(hub):
    """`commands(ours)`: the folder of commands served by a process that has imported this package, or has not."""
    import tempfile

    servers = {}
    with tempfile.TemporaryDirectory() as folder:  # paths of sockets are short

        def start(ours):
            if ours not in servers:
                modules = NEEDS_PACKAGE if ours else NEEDS_NOTHING_OF_OURS
                servers[ours] = serve(Path(folder), "ours" if ours else "bare", modules, hub)
            return servers[ours][1]

        start.environment = hub
        yield start
        for process, _ in servers.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Data that pages take for a reader's own: pictures in a folder for each class, an export of annotated images, and
    pairs of texts."""
    folder = tmp_path_factory.mktemp("examples")
    write_roboflow(folder / "path/to/roboflow")
    for shape, draw in (("circle", ImageDraw.ImageDraw.ellipse), ("square", ImageDraw.ImageDraw.rectangle)):
        (folder / "path/to/images" / shape).mkdir(parents=True)
        for number in range(20):
            picture = Image.new("RGB", (32, 32), (10 * number, 80, 120))
            draw(ImageDraw.Draw(picture), (4, 4, 12 + number, 12 + number), fill="white")
            picture.save(folder / "path/to/images" / shape / f"{number}.png")
    for language, words in (("de", ("ein", "Hund", "läuft")), ("en", ("a", "dog", "runs"))):
        lines = [" ".join(words[: 1 + number % 3]) + f" {number}" for number in range(60)]
        (folder / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class Page:
    """A folder as a reader has it, in which the blocks of a page run in their order."""

    def __init__(self, page, folder, commands, cut):
        self.page, self.folder, self.commands, self.session = page, folder, commands, None
        # A page that never imports the package says what its folders do where it is not installed.
        self.ours = any(
            "hf_vit" in block.text for block in BLOCKS[page] if block.is_run and block.language == "python"
        )
        self.environment = {
            **os.environ,
            **commands.environment,
            "SNIPPETS_CUT": cut,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }

    def run(self, block):
        return self.run_python(block) if block.language == "python" else self.run_commands(block)

    def where(self, line):
        return f"{self.page.relative_to(ROOT)}:{line}"

    def run_commands(self, block):
        path = f"{self.commands(True)}{os.pathsep}{self.environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=self.folder,
            env={**self.environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{self.where(block.line)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def run_python(self, block):
        if self.session is None:
            command = [str(self.commands(self.ours) / "session"), *([] if self.ours else ["without"])]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.session = subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)
        statements = statements_of(block)
        self.session.stdin.write(json.dumps([(each.text, each.line) for each in statements]) + "\n")
        self.session.stdin.flush()
        printed, error = json.loads(self.session.stdout.readline())
        assert error is None, f"{self.where(block.line)}\n{error}"
        for statement, output in zip(statements, printed):
            if statement.says is not None:
                differ = f"{self.where(statement.line)} prints\n{output}and the page says\n{statement.says}"
                assert agrees(output, statement.says), differ
        return "".join(printed)

    def close(self):
        if self.session is not None:
            self.session.stdin.close()
            self.session.wait()
            self.session.stdout.close()


def run_page(page, examples, folder, commands, cut):
    """Runs what a page gives to run, and compares what it prints with what the page says. The commands in its
    sentences and tables are no part of its course: they have a folder of their own."""
    for inline in sorted({block.inline for block in BLOCKS[page] if block.is_run}):
        blocks = [block for block in BLOCKS[page] if block.is_run and block.inline == inline]
        name = "inline" if inline else "page"
        run_blocks(blocks, page, as_a_reader(examples, folder / name), commands, cut)


def run_blocks(blocks, page, folder, commands, cut):
    opened = Page(page, folder, commands, cut)
    try:
        for block in blocks:
            printed = opened.run(block)
            if block.printed is not None:
                differ = f"{opened.where(block.line)} prints\n{printed}and the page says\n{block.printed}"
                assert agrees(printed, block.printed), differ
    finally:
        opened.close()


def as_a_reader(examples, folder):
    """A copy of what a clone holds, so that nothing is written into it, with a reader's own data beside it."""
    shutil.copytree(examples, folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "model_cards", folder / "model_cards")
    for name in ("training", "docs", "benchmarks", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


RUN = [page for page in PAGES if any(block.is_run for block in BLOCKS[page])]
VERBS = [page for page in RUN if page.parent.name == "verbs"]  # in a file of their own, so that two processes share


@pytest.mark.parametrize("page", [page for page in RUN if page not in VERBS], ids=name_of)
def test_a_page_does_what_it_says(page, examples, commands, tmp_path):
    """With trainings cut to two steps."""
    run_page(page, examples, tmp_path, commands, cut="1")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_page_does_what_it_says_whole(page, examples, commands, tmp_path):
    run_page(page, examples, tmp_path, commands, cut="")


@pytest.mark.parametrize("card", CARDS, ids=name_of)
def test_snippets_of_a_card_print_what_it_says(card, commands, tmp_path):
    """Where a reader has downloaded the model: its folder beside, its samples at hand."""
    (tmp_path / card.parent.name).symlink_to(card.parent)
    for sample in card.parent.glob("sample_*"):
        (tmp_path / sample.name).symlink_to(sample)
    opened = Page(card, tmp_path, commands, cut="1")
    try:
        blocks = [block for block in BLOCKS[card] if block.language == "python"]
        assert blocks and all(block.printed for block in blocks)
        for block in blocks:
            assert agrees(opened.run(block), block.printed), opened.where(block.line)
    finally:
        opened.close()


def test_what_is_compared():
    """Blocks, marks and outputs are found, and a page that says another thing is told of."""
    python = Block("python", "x = 2\nprint(\n    x\n)  # 2\nprint(x / 3)\nprint(0.5)  # 0.5001\n# and more\n", 10)
    says = [(each.line, each.says) for each in statements_of(python)]
    assert says == [(10, None), (11, "2"), (14, None), (15, "0.5001\nand more")]
    assert agrees("{'score': 0.99861}\n", "{'score': 0.9986}") and not agrees("{'score': 0.95}", "{'score': 0.9986}")
    assert agrees("a 1,234.5", "a  1,234.9") and not agrees("31", "32") and not agrees("one", "two")
    assert agrees("[1, 2, 3]", "[1, ...") and not agrees("[1, 2, 3]", "[2, ...")


def test_blocks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "# A\n\n```bash\nls\n```\n\nwhich prints\n\n```\nx\n```\n\n"
        "<!-- not run: needs a GPU -->\n```bash\nls\n```\n\n```\ny\n```\n\n"
        "| A | B |\n|---|---|\n| `hf-vit cost` | `hf-vit cost x`, `python a.py` <!-- not run: needs hours --> |\n\n"
        "By `hf-vit cost y`, or for any by `hf-vit cost MODEL`.\n"
    )
    page.write_text(text)
    first, output, marked, unknown, run, kept, said = blocks_of(page)
    assert (said.text, said.is_run, said.inline) == ("hf-vit cost y", True, True)
    assert (run.text, run.is_run, run.line) == ("hf-vit cost x", True, 24)
    assert (kept.text, kept.needs, kept.is_run) == ("python a.py", "needs hours", False)
    assert (first.is_run, first.printed, first.line) == (True, "x\n", 4)
    assert output.is_output and (marked.needs, marked.is_run) == ("needs a GPU", False)
    assert not (unknown.is_run or unknown.is_output or unknown.needs)
