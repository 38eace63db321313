"""The blocks of code on a page of Markdown, and how what they print is compared with what the page says."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

COMMANDS = ("bash", "sh", "shell")
DATA = ("bibtex", "yaml", "json", "toml", "html", "csv", "markdown")
_MARK = re.compile(r"<!--\s*not run:\s*(needs \S.*?)\s*-->\s*\Z", re.DOTALL)
# With what it is to work on: a program's name alone, or a verb's, is spoken of.
_COMMAND = re.compile(r"accelerate launch .*train\.py|python \S+\.py|hf-vit \S+ \S|pip install \S")
# In prose, with what it is to work on too, and no word in capitals that stands for a reader's own.
_COMMAND_IN_PROSE = re.compile(
    r"(?!.*\b[A-Z]{4,}\b)(accelerate launch .*train\.py \S|python (benchmarks/\S+\.py|\S+\.py \S)|hf-vit \S+ [^-\s\"])"
)
_PRINTS = re.compile(r"\bprints\b[^.]*:?\s*\Z")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass
class Block:
    """A block of code: its language, text and first line on its page; why it is not run; what the page says that it
    prints, in a block of text that follows the words "which prints"."""

    language: str
    text: str
    line: int
    needs: str | None = None
    printed: str | None = None
    is_output: bool = False
    inline: bool = False

    @property
    def is_run(self):
        return self.needs is None and self.language in (*COMMANDS, "python")


def blocks_of(page: Path) -> list[Block]:
    """The blocks of code of a page, in order, and as blocks the commands in its sentences and in cells of its
    tables."""
    found: list[Block] = []
    before, prints, row = "", False, None
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in ("tr_open", "tr_close"):
            row = token.map
        elif token.type == "inline" and row is not None:
            found += _commands_of(token, row[0] + 1, _COMMAND)
        elif token.type == "fence":
            block = Block(token.info.strip().partition(" ")[0], token.content, token.map[0] + 2)
            mark = _MARK.search(before)
            if mark:
                block.needs = mark[1]
            elif prints and found and block.language in ("", "text"):
                found[-1].printed, block.is_output = block.text, True
            found.append(block)
            before, prints = "", False
        elif token.type == "html_block":
            before = token.content
        elif token.type == "inline":
            before, prints = "", bool(_PRINTS.search(token.content))
            found += _commands_of(token, token.map[0] + 1, _COMMAND_IN_PROSE)
    return found


def _commands_of(text: Token, line: int, command: re.Pattern[str]) -> list[Block]:
    """The commands in a paragraph or a cell of a table; a mark may follow each."""
    found: list[Block] = []
    for child in text.children or []:
        if child.type == "code_inline" and command.match(child.content):
            found.append(Block("bash", child.content, line, inline=True))
        elif child.type == "html_inline" and found and (mark := _MARK.search(child.content)):
            found[-1].needs = mark[1]
    return found


@dataclass
class Statement:
    """A statement of a snippet, its first line, and the comments that say what it prints."""

    text: str
    line: int
    says: str | None = None
    calls_print: bool = field(default=False)


def statements_of(block: Block) -> list[Statement]:
    """The statements of a block in Python. What a call of `print` prints stands in a comment on its last line, and on
    the lines of comments that follow it at once."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(block.text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.removeprefix("#").removeprefix(" ")
    lines = block.text.splitlines()
    found = []
    for node in ast.parse(block.text).body:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        statement = Statement(text, block.line + node.lineno - 1)
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print":
            statement.calls_print = True
            says = [comments[node.end_lineno]] if node.end_lineno in comments else []
            number = node.end_lineno + 1
            while says and number <= len(lines) and lines[number - 1].startswith("#"):
                says.append(comments[number])
                number += 1
            statement.says = "\n".join(says) or None
        found.append(statement)
    return found


def agrees(printed: str, says: str, tolerance: float = 2e-3) -> bool:
    """Whether a text that was printed is the one on the page: white space aside, numbers with a point to within
    `tolerance`, relative to those larger than 1; `...` on the page stands for anything."""
    printed, says = " ".join(printed.split()), " ".join(says.split())
    pattern, values = "", []
    position = 0
    for match in re.finditer(rf"{_NUMBER.pattern}|\.\.\.", says):
        pattern += re.escape(says[position : match.start()])
        position = match.end()
        if match[0] == "...":
            pattern += ".*"
        elif "." in match[0] or "e" in match[0].lower():
            pattern += f"({_NUMBER.pattern})"
            values.append(float(match[0].replace(",", "")))
        else:
            pattern += re.escape(match[0])
    found = re.fullmatch(pattern + re.escape(says[position:]), printed)
    if found is None:
        return False
    pairs = zip((float(group.replace(",", "")) for group in found.groups()), values)
    return all(abs(value - said) <= tolerance * max(1.0, abs(said)) for value, said in pairs)
