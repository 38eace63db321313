"""The figures of the card of an image classifier, beside those that all cards share."""

import io
from itertools import zip_longest
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.stats import binomtest

from hf_vit.cards.figures import BLUE, DIVERGING, DPI, GREY, INK, ORANGE, PLAIN, SHADES, from_data
from hf_vit.cards.format import shorten
from hf_vit.explain.overlay import overlay

MAX_MATRIX_CLASSES = 50  # more class names than this cannot be read along an axis
MAX_WRITTEN_CLASSES = 15  # more counts than this squared cannot be read inside the cells
MAX_SAMPLES = 8
MAX_PICTURES = 4  # whose attention is shown


def _matrix(facts: Any) -> dict | None:
    if not 0 < len(facts.confusion_matrix) <= MAX_MATRIX_CLASSES:
        return None
    return {"names": facts.class_names, "counts": facts.confusion_matrix}


@from_data(_matrix)
def confusion_matrix(data: dict) -> Figure:
    """Counts of each true class (row) by predicted class (column); the shade is the fraction of the row."""
    counts = np.array(data["counts"])  # (num_classes, num_classes)
    names = [shorten(name, 18) for name in data["names"]]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(7.2, max(4.4, 0.5 * len(names) + 1.4))
    figure = Figure(figsize=(side + 0.9, side), layout="compressed")
    axes = figure.subplots()
    written = len(names) <= MAX_WRITTEN_CLASSES
    # Where no counts are written, the shade alone must show a share of a few per cent.
    norm = PowerNorm(1 if written else 0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap=matplotlib.colormaps["Blues"].resampled(20), norm=norm)
    cell = 72 * 0.7 * side / len(names)  # points
    size = min(11, 0.8 * cell)
    upright = 0.65 * size * max(map(len, names)) < cell
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=0 if upright else 90)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if written:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 55 else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=10)
    figure.colorbar(image, label="share of the true class (%)", fraction=0.046, pad=0.03).outline.set_visible(False)
    return figure


def _filled_bins(facts: Any) -> list[dict]:
    return [bin for bin in facts.calibration if bin.get("num_examples") and "confidence" in bin]


@from_data(_filled_bins)
def reliability_diagram(bins: list[dict]) -> Figure:
    """Accuracy against confidence in each bin with its 95 % interval, over the number of examples in it."""
    confidence, accuracy = (100 * np.array([bin[key] for bin in bins]) for key in ("confidence", "accuracy"))
    intervals = 100 * np.array([wilson_interval(bin["accuracy"], bin["num_examples"]) for bin in bins]).T  # (2, bins)
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], "--", color=GREY, linewidth=1.5, label="confidence = accuracy")
    errors = np.abs(intervals - accuracy)
    upper.errorbar(confidence, accuracy, errors, fmt="o", color=BLUE, elinewidth=1.5, capsize=3, label="this model")
    upper.set_ylabel("accuracy (%)")
    upper.set_xlim(0, 102)
    upper.set_ylim(0, 102)
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.5, borderaxespad=0)
    lower.bar(confidence, [bin["num_examples"] for bin in bins], width=2.5, color=BLUE)
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.5)
    lower.yaxis.set_major_formatter(PLAIN)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence (%)")
    return figure


def wilson_interval(fraction: float, num_examples: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a fraction measured on so many examples."""
    interval = binomtest(round(fraction * num_examples), num_examples).proportion_ci(method="wilson")
    return interval.low, interval.high


def _with_images(facts: Any, rows: list[dict]) -> list[dict]:
    return [{**row, "image": (facts.folder / row["file"]).read_bytes().hex()} for row in rows]


def _decoded(encoded: str, max_side: int) -> Image.Image:
    """An encoded image, in hexadecimal, at most so many pixels long."""
    image = Image.open(io.BytesIO(bytes.fromhex(encoded))).convert("RGB")
    image.thumbnail((max_side, max_side))
    return image


def _show(axes: Axes, image: Image.Image) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.size) < 64 else "antialiased")


def _shown(facts: Any) -> list[dict]:
    return _with_images(facts, facts.samples[:MAX_SAMPLES])


@from_data(_shown)
def samples(rows: list[dict]) -> Figure:
    """Images with their true and their predicted class; a wrong prediction is orange and bears a cross."""
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(1.8 * columns, 2.35 * lines), layout="constrained")
    for axes, row in zip_longest(figure.subplots(lines, columns, squeeze=False).flat, rows):
        axes.axis("off")
        if row is None:
            continue
        _show(axes, _decoded(row["image"], 2 * DPI))
        right = row["label"] == row["prediction"]
        score = f", {100 * row['score']:.1f} %" if "score" in row else ""
        answer = shorten(row["prediction"], 18) + score
        text = f"true: {shorten(row['label'], 18)}\n{'✓' if right else '✗'} {answer}"
        size = min(11, 240 / max(map(len, text.splitlines())))  # as much as the picture below is wide
        axes.set_title(text, fontsize=size, fontweight="normal", color=BLUE if right else ORANGE)
    return figure


def _attention(facts: Any) -> list[dict]:
    looked_at = [row.to_dict() for row in facts.measured.attention if row.file in facts.attended]
    return _with_images(facts, looked_at)


@from_data(_attention)
def attention(rows: list[dict]) -> Figure:
    """Images, each with its attention maps laid over it; under a map its least and its largest value, 1 being an even
    share."""
    titles = list(rows[0]["maps"])
    columns = 1 + len(titles)
    side = 7.2 / columns
    figure = Figure(figsize=(7.2, (side + 0.2) * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, title in zip(grid[0], ["image", *titles]):
        axes.set_title(title, fontsize=11, fontweight="normal", loc="center")
    for line, row in zip(grid, rows):
        image = _decoded(row["image"], int(side * DPI))
        _show(line[0], image)
        for axes, title in zip(line[1:], titles):
            values = row["maps"][title]
            _show(axes, overlay(image, values))
            axes.set_xlabel(f"{np.min(values):.2f} – {np.max(values):.2f}", fontsize=10)
        for axes in line:
            _without_frame(axes)
    return figure


def _without_frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _positions(facts: Any) -> dict | None:
    return facts.measured.positions and facts.measured.positions.to_dict()


@from_data(_positions)
def positions(data: dict) -> Figure:
    """Similarity maps of patches all over the grid, or what each offset between two patches does."""
    maps = np.array(data["maps"])  # (count, height, width)
    if data["kind"] == "similarity":
        return _similarity(maps, data["rows"], data["columns"], data["grid_size"])
    return _by_offset(maps, data["kind"], data["grid_size"])


def _panels(lines: int, columns: int, side: float, grid_size: list[int]) -> tuple[Figure, np.ndarray]:
    """A figure of panels `side` inches wide that have the grid's shape, or nearly so where it is a mere strip."""
    height = side * min(max(grid_size[0] / grid_size[1], 0.4), 2.5)
    figure = Figure(figsize=(side * columns + 1.5, height * lines + 0.2 * lines + 0.5), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)


def _color_bar(figure: Figure, image: AxesImage, label: str) -> None:
    figure.colorbar(image, ax=figure.axes, label=label, aspect=30, pad=0.02).outline.set_visible(False)


def _similarity(maps: np.ndarray, rows: list[int], columns: list[int], grid_size: list[int]) -> Figure:
    height, width = grid_size
    figure, grid = _panels(len(rows), len(columns), min(5.7 / len(columns), 1.5), grid_size)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for index, (axes, values) in enumerate(zip(grid.flat, maps)):
        image = axes.imshow(values, cmap=SHADES, vmin=min(0, maps.min()), vmax=1, extent=extent, aspect="auto")
        row, column = rows[index // len(columns)], columns[index % len(columns)]
        axes.plot(column, row, ".", color=ORANGE, markersize=5)
        _without_frame(axes)
    for axes, row in zip(grid[:, 0], rows):
        axes.set_ylabel(row + 1, rotation=0, ha="right", va="center")
    for axes, column in zip(grid[-1], columns):
        axes.set_xlabel(column + 1)
    figure.supxlabel("column of the patch", fontsize=11)
    figure.supylabel("row of the patch", fontsize=11)
    _color_bar(figure, image, "cosine similarity")
    return figure


def _by_offset(maps: np.ndarray, kind: str, grid_size: list[int]) -> Figure:
    height, width = grid_size
    columns = min(4, len(maps))
    figure, grid = _panels(-(-len(maps) // columns), columns, 3.6 if columns == 1 else 5.7 / columns, grid_size)
    largest = np.abs(maps).max() or 1
    extent = (0.5 - width, width - 0.5, height - 0.5, 0.5 - height)
    for index, (axes, values) in enumerate(zip_longest(grid.flat, maps)):
        if values is None:
            axes.axis("off")
            continue
        image = axes.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, extent=extent, aspect="auto")
        axes.grid(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=4, min_n_ticks=1))
        if len(maps) > 1:
            axes.set_title(f"head {index + 1}", fontsize=11, fontweight="normal")
    figure.supxlabel("columns from key to query", fontsize=11)
    figure.supylabel("rows from key to query", fontsize=11)
    _color_bar(figure, image, "bias of the score" if kind == "bias" else "dot product of rotated query and key")
    return figure
