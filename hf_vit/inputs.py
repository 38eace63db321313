"""What the everyday verbs are given: images by file, folder, pattern or address, in batches; and their outputs."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from transformers.image_utils import load_image

from hf_vit.words import shortened

logger = logging.getLogger(__name__)


def find_images(inputs: Sequence[str]) -> list[str]:
    """The names of all images, each once: of folders, at any depth, every file whose suffix Pillow knows, sorted.

    Args:
        inputs: files, folders, patterns of `glob` and addresses that begin with http:// or https://.

    Raises:
        ValueError: nothing is given, an input is not there, or a folder or a pattern holds no image.
    """
    if not inputs:
        raise ValueError("inputs must name at least one image, folder or pattern, got none")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names: list[str] = []
    for name in inputs:
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
    return list(dict.fromkeys(names))


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
    if num_skipped == len(names):
        raise ValueError(f"inputs must hold at least one readable image, none of {len(names):,} can be read")
    if num_skipped:
        logger.warning("%d of %d images could not be read and were skipped", num_skipped, len(names))


def _read(name: str) -> Image.Image | None:
    try:
        if name.startswith(("http://", "https://")):
            return load_image(name, timeout=30)
        with Image.open(name) as opened:
            if opened.mode.startswith(("I", "F")):  # Pillow would clip them to 8 bits
                raise ValueError(f"samples of more than 8 bits (mode {opened.mode}): convert the image first")
            return load_image(opened)
    except Exception as error:  # Pillow's decoders raise many types on broken files
        logger.warning("skipped %s: %s", name, shortened(str(error).splitlines()[0] if str(error) else repr(error)))
        return None


def check_output(output: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raises `ValueError` for an output of another suffix, and for one that exists unless it may be overwritten."""
    if output.suffix not in suffixes:
        raise ValueError(f"output must end with {' or '.join(suffixes)}, got {str(output)!r}")
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
