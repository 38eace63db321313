"""The figures of the card of a detector, beside those that all cards share."""

import io
from itertools import zip_longest
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure
from PIL import Image

from hf_vit.cards.figures import BLUE, GREY, ORANGE, from_data
from hf_vit.cards.format import shorten

MAX_CURVES = 8  # classes; the rest would not be told apart
MAX_SAMPLES = 8
MAX_WRITTEN = 12  # objects of a picture whose names are written
_OUTCOMES: dict[str, tuple[str, Any]] = {"right": (BLUE, "-"), "wrong": (ORANGE, "-"), "missed": (ORANGE, ":")}


def with_images(facts: Any, rows: list[dict]) -> list[dict]:
    return [{**row, "image": (facts.folder / row["file"]).read_bytes().hex()} for row in rows]


def _first_samples(facts: Any) -> list[dict]:
    return with_images(facts, facts.samples[:MAX_SAMPLES])


@from_data(_first_samples)
def samples(rows: list[dict]) -> Figure:
    """Images with what was found, rightly (blue) or not (orange), and what was missed (dotted)."""
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    pictures = [Image.open(io.BytesIO(bytes.fromhex(row["image"]))).convert("RGB") for row in rows]
    aspect = max(picture.height / picture.width for picture in pictures)
    figure = Figure(figsize=(7.2, lines * 7.2 / columns * aspect + 0.4), layout="constrained")
    for axes, row, picture in zip_longest(figure.subplots(lines, columns, squeeze=False).flat, rows, pictures):
        axes.axis("off")
        if row is None:
            continue
        axes.imshow(picture, interpolation="nearest" if max(picture.size) < 128 else "antialiased")
        draw_objects(axes, row.get("objects", []))
    handles = [patches.Patch(fill=False, edgecolor=c, linestyle=s, label=name) for name, (c, s) in _OUTCOMES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def draw_objects(axes: Any, objects: list[dict]) -> None:
    """Boxes with the names and scores of the surest of them."""
    for number, each in enumerate(objects):
        color, style = _OUTCOMES[each["outcome"]]
        left, top, right, bottom = each["box"]
        corner, size = (left, top), (right - left, bottom - top)
        axes.add_patch(patches.Rectangle(corner, *size, fill=False, edgecolor=color, linestyle=style, linewidth=1.5))
        if number < MAX_WRITTEN:
            score = f" {100 * each['score']:.0f} %" if "score" in each else ""
            text = axes.text(left, top - 1, shorten(each["label"], 14) + score, color=color, fontsize=7, va="bottom")
            text.set_path_effects([effects.withStroke(linewidth=2, foreground="white")])


def _precision_recall(facts: Any) -> list[dict]:
    curves = zip(facts.class_names, facts.precision_recall, facts.per_class)
    found = [{"label": name, "precision": values} for name, values, score in curves if score.support]
    return found[:MAX_CURVES]


@from_data(_precision_recall)
def precision_recall(curves: list[dict]) -> Figure:
    """Precision against recall of each class at IoU 0.5."""
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":"]
    colors = [BLUE, ORANGE, GREY]
    for index, curve in enumerate(curves):
        recall = np.linspace(0, 100, len(curve["precision"]))
        style: dict[str, Any] = {"color": colors[index % 3], "linestyle": styles[index // 3 % 4]}
        axes.plot(recall, 100 * np.array(curve["precision"]), label=shorten(curve["label"], 18), **style)
    axes.set(xlim=(0, 101), ylim=(0, 102), xlabel="recall (%)", ylabel="precision (%)")
    axes.legend(loc="lower left")
    return figure
