"""The figures of the card of an image-to-text model, beside those that all cards share."""

import io
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_vit.cards.figures import BLUE, ORANGE, SHADES, from_data
from hf_vit.cards.format import shorten

MAX_SAMPLES, MAX_WORDS, MAX_LENGTH = 12, 12, 60
_WIDTH = 7.2  # inches


def _with_image(facts: Any, file: str) -> str:
    return (facts.folder / file).read_bytes().hex()


def _picture(row: dict) -> Image.Image:
    return Image.open(io.BytesIO(bytes.fromhex(row["image"]))).convert("RGB")


def _samples(facts: Any) -> list[dict]:
    return [{**each.to_dict(), "image": _with_image(facts, each.file)} for each in facts.samples[:MAX_SAMPLES]]


@from_data(_samples)
def samples(rows: list[dict]) -> Figure:
    """Images below what was written: blue where it is one of the image's texts, else orange, with the first of
    them."""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    pictures = [_picture(row) for row in rows]
    aspect = max(picture.height / picture.width for picture in pictures)
    figure = Figure(figsize=(_WIDTH, lines * (_WIDTH / columns * aspect + 0.3)), layout="constrained")
    for axes, row, picture in zip_longest(figure.subplots(lines, columns, squeeze=False).flat, rows, pictures):
        axes.axis("off")
        if row is None:
            continue
        axes.imshow(picture, interpolation="nearest" if max(picture.size) < 128 else "antialiased")
        is_right = row["prediction"] in row["texts"]
        text = row["prediction"] or "(nothing)"
        title = text if is_right else f"{text}  [{row['texts'][0]}]"
        axes.set_title(shorten(title, MAX_LENGTH), fontsize=9, color=BLUE if is_right else ORANGE, wrap=True)
    return figure


def _attended(facts: Any) -> list[dict]:
    known = {sample.file for sample in facts.samples}
    return [
        {
            "image": _with_image(facts, row.file),
            "words": row.words[:MAX_WORDS],
            "maps": row.maps[:MAX_WORDS],
        }
        for row in facts.measured.cross_attention
        if row.file in known
    ]


@from_data(_attended)
def cross_attention(rows: list[dict]) -> Figure:
    """For each word of a text the image, faded, and over it how much attention its patches get; a column an image."""
    pictures = [_picture(row) for row in rows]
    lines = max(len(row["words"]) for row in rows)
    width = _WIDTH / len(rows)
    aspect = max(picture.height / picture.width for picture in pictures)
    figure = Figure(figsize=(_WIDTH, lines * (width * aspect + 0.12)), layout="constrained")
    grid = figure.subplots(lines, len(rows), squeeze=False)
    for column, row, picture in zip(grid.T, rows, pictures):
        for axes, word, values in zip_longest(column, row["words"], row["maps"]):
            if word is None:
                axes.axis("off")
                continue
            extent = (0, picture.width, picture.height, 0)
            axes.imshow(picture.convert("L"), cmap="gray", extent=extent, interpolation="nearest")
            shares = np.array(values)
            strength = shares / max(shares.max(), 1e-9)
            axes.imshow(strength, cmap=SHADES, alpha=0.75 * strength, extent=extent, vmin=0, vmax=1)
            axes.set_ylabel(shorten(word, 12), fontsize=9, rotation=0, ha="right", va="center")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
    return figure
