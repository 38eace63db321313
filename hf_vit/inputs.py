"""Inputs of the everyday verbs: images by file, folder, pattern or address, texts by file, in batches; and outputs."""

from __future__ import annotations

import glob
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from transformers.image_utils import load_image

from hf_vit.files import read_utf8
from hf_vit.words import shortened

logger = logging.getLogger(__name__)


def find_images(inputs: Sequence[str]) -> list[str]:
    """The names of all images, each once: of folders, at any depth, every file whose suffix Pillow knows, sorted.

    Args:
        inputs: files, folders, patterns of `glob` and addresses that begin with http:// or https://; `-` stands for
            such names on the lines of standard input.

    Raises:
        ValueError: nothing is given, an input is not there, or a folder or a pattern holds no image.
    """
    if not inputs:
        raise ValueError("inputs must name at least one image, folder or pattern, got none")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names: list[str] = []
    for name in _with_lines(inputs):
        path = Path(name)
        if name.startswith(("http://", "https://")) or path.is_file():
            found = [name]
        elif path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            found = [str(each) for each in files if each.suffix.lower() in known]
        else:
            found = [each for each in sorted(glob.glob(name, recursive=True)) if Path(each).is_file()]
        if not found:
            what = "a folder that holds no image" if path.is_dir() else "no file, folder or pattern that finds one"
            raise ValueError(f"inputs must be images, {name!r} is {what}")
        names += found
    if not names:
        raise ValueError("inputs must name at least one image, standard input names none")
    return list(dict.fromkeys(names))


def _with_lines(inputs: Sequence[str]) -> Iterator[str]:
    for name in inputs:
        if name == "-":
            yield from filter(None, lines())
        else:
            yield name


def lines() -> Iterator[str]:
    """Lines of standard input as they come, in UTF-8 whatever the locale is."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    for line in sys.stdin:
        yield line.rstrip("\n")


@dataclass(frozen=True)
class Texts:
    """Texts of files, a text a line, `-` of standard input."""

    files: list[str]

    def batches(self, batch_size: int, skip: frozenset[str] = frozenset()) -> Iterator[list[tuple[str, str]]]:
        """Names `file:line`, lines counted from 1, and texts, but for the names to skip, with a progress bar. Files
        that cannot be read are named in a warning and skipped.

        Raises:
            ValueError: at the end, no file could be read, or there was no text at all.
        """
        batch: list[tuple[str, str]] = []
        name = None
        with tqdm(unit="text", disable=None) as progress:
            for name, text in self._texts():
                if name in skip:
                    continue
                batch.append((name, text))
                if len(batch) == batch_size:
                    yield batch
                    progress.update(len(batch))
                    batch = []
            if batch:
                yield batch
                progress.update(len(batch))
        if name is None:
            named = ", ".join("standard input" if file == "-" else file for file in self.files)
            raise ValueError(f"inputs must hold at least one text, {named} is empty")

    def _texts(self) -> Iterator[tuple[str, str]]:
        num_skipped = 0
        for file in self.files:
            try:
                texts = lines() if file == "-" else io.StringIO(read_utf8(Path(file)), newline=None)
            except (OSError, ValueError) as error:
                logger.warning("skipped %s: %s", file, error)
                num_skipped += 1
                continue
            for number, text in enumerate(texts, 1):
                yield f"{file}:{number}", text.rstrip("\n")
        _tell_skipped(num_skipped, len(self.files), "files of texts")


def find_texts(inputs: Sequence[str]) -> Texts:
    """Find the texts of files and patterns of `glob`, `-` for standard input.

    Raises:
        ValueError: nothing is given, or an input is no file.
    """
    if not inputs:
        raise ValueError("inputs must name at least one file of texts, or - for standard input, got none")
    found: list[str] = []
    for name in inputs:
        files = [name] if name == "-" or Path(name).is_file() else sorted(filter(_is_file, glob.glob(name)))
        if not files:
            raise ValueError(f"inputs must be files of texts, a text a line, or -, got {name!r}")
        found += files
    return Texts(found)


def _is_file(name: str) -> bool:
    return Path(name).is_file()


def read_images(names: Sequence[str], batch_size: int) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Batches of names and images in RGB, with a progress bar. What cannot be read is named in a warning and skipped.

    Raises:
        ValueError: batch_size is below 1, or, at the end, no image could be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    num_skipped = 0
    with tqdm(total=len(names), unit="image", disable=None) as progress:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            images = [_read(name) for name in batch]
            readable = [(name, image) for name, image in zip(batch, images) if image is not None]
            num_skipped += len(batch) - len(readable)
            if readable:
                yield [name for name, _ in readable], [image for _, image in readable]
            progress.update(len(batch))
    _tell_skipped(num_skipped, len(names), "images")


def _tell_skipped(num_skipped: int, total: int, kind: str) -> None:
    """Warns of inputs that could not be read, and raises `ValueError` if all of them were such."""
    if num_skipped == total:
        raise ValueError(f"inputs must hold {kind} that can be read, none of {total:,} can be read")
    if num_skipped:
        logger.warning("%d of %d %s could not be read and were skipped", num_skipped, total, kind)


def _read(name: str) -> Image.Image | None:
    try:
        return opened(name)
    except Exception as error:  # Pillow's decoders raise many types on broken files
        logger.warning("skipped %s: %s", name, shortened(str(error).splitlines()[0] if str(error) else repr(error)))
        return None


def opened(name: str) -> Image.Image:
    """An image in RGB, turned as its EXIF says.

    Raises:
        OSError: it cannot be read.
        ValueError: its samples have more than 8 bits, which Pillow would clip.
    """
    if name.startswith(("http://", "https://")):
        return load_image(name, timeout=30)
    with Image.open(name) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"samples of more than 8 bits (mode {image.mode}): convert the image first")
        return load_image(image)


def check_output(output: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raises `ValueError` for an output of another suffix, and for one that exists unless it may be overwritten. A
    suffix of \"\" stands for folders."""
    if output.suffix not in suffixes:
        kinds = [f"end with {' or '.join(filter(None, suffixes))}", *(["be a folder"] if "" in suffixes else [])]
        raise ValueError(f"output must {' or '.join(kinds)}, got {str(output)!r}")
    if output.suffix == "" and output.is_dir() and (overwrite or not any(output.iterdir())):
        return
    if output.is_dir() or (output.exists() and not overwrite):
        raise ValueError(f"output must be a new file, {str(output)!r} exists: name another, or give --overwrite")


def load_config(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The configuration of a model of the Hub or of a folder.

    Raises:
        ValueError: it needs code of its own, which is not trusted, or is of a kind that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"model must be of this package or of transformers, {model!r} needs code of its own: read it, then give "
            "--trust_remote_code to run it"
        ) from None
