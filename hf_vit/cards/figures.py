"""The figures of a card: light background, colours that every reader can tell apart, text large enough for a phone."""

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image, PngImagePlugin

from hf_vit.cards.facts import CardFacts
from hf_vit.files import digest
from hf_vit.record import Epoch

# Okabe and Ito's palette: distinguishable with any common colour-vision deficiency.
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#5F6368", "#202124"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#E3E5E8",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "text.parse_math": False,
}
# Few shades, so that the file stays small.
SHADES, DIVERGING = (matplotlib.colormaps[name].resampled(32) for name in ("viridis", "PuOr"))
PLAIN = FuncFormatter(lambda value, position: f"{value:g}")  # logarithmic axes write powers as formulas otherwise
DPI = 144
LOG_SCALE_FROM = 50  # a loss that falls by more than this factor is unreadable on a linear axis
_DIGEST = "Records"  # the PNG's text field with the digest of the numbers it shows


def from_data(data: Callable[[CardFacts], Any]) -> Callable:
    """Makes a function that plots numbers into one that draws a card's figure: `draw(facts)` is a PNG or None.

    `data` picks the JSON-like numbers to plot, or something empty when they were not measured. Their digest goes into
    the file, and `draw.digest(facts)` is what it must be.
    """

    def decorate(plot: Callable[..., Figure]) -> Callable:
        def digest_for(facts: CardFacts) -> str | None:
            values = data(facts)
            return digest([json.dumps(values).encode()]) if values else None

        @functools.wraps(plot)
        def draw(facts: CardFacts) -> bytes | None:
            values, numbers = data(facts), digest_for(facts)
            if numbers is None:
                return None
            with matplotlib.rc_context(STYLE):
                return _png(plot(values), numbers)

        draw.digest = digest_for  # type: ignore[attr-defined]  # beside the function
        return draw

    return decorate


def digest_of(path: str | Path) -> str | None:
    """The digest of the numbers that a figure's file shows, or None when the file holds none."""
    try:
        with Image.open(path) as image:
            return image.info.get(_DIGEST)
    except OSError:  # not an image
        return None


def _png(figure: Figure, digest: str) -> bytes:
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    text = PngImagePlugin.PngInfo()
    text.add_text(_DIGEST, digest)
    # Few flat colours: a palette makes the file several times smaller and looks the same.
    image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(buffer, format="png", optimize=True, pnginfo=text)
    return buffer.getvalue()


def _curves(facts: CardFacts) -> list[dict]:
    """Panels with their lines; a line is its points (epoch, value)."""
    evaluated = facts.evaluated_split or "evaluation"
    train = [(epoch.epoch, epoch.train_loss) for epoch in facts.epochs]
    panels: list[tuple[str, str, dict[str, Any]]] = [
        ("Loss", "loss (nats)", {"train": train, evaluated: _points(facts.epochs, "loss")})
    ]
    for curve in facts.curves:
        panels.append((curve.title, curve.label, {evaluated: _points(facts.epochs, curve.metric, curve.scale)}))
    found = []
    for title, label, lines in panels:
        measured = {name: [point for point in points if point[1] is not None] for name, points in lines.items()}
        if series := {name: points for name, points in measured.items() if points}:
            found.append({"title": title, "label": label, "series": series})
    return found


def _points(epochs: list[Epoch], metric: str, scale: float = 1) -> list[tuple[int | float | None, float | None]]:
    values = [(epoch.epoch, epoch.metrics.number(metric)) for epoch in epochs]
    return [(epoch, None if value is None else scale * value) for epoch, value in values]


@from_data(_curves)
def learning_curves(panels: list[dict]) -> Figure:
    """Loss and quality against the epoch."""
    figure = Figure(figsize=(3.6 * len(panels), 3.1), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axes.set_title(panel["title"])
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel["label"])
        points = next(iter(panel["series"].values()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=all(isinstance(epoch, int) for epoch, _ in points), nbins=6))
        for name, points in panel["series"].items():
            color, dash = (BLUE, "--") if name == "train" else (ORANGE, "-")
            marker = "o" if len(points) <= 15 else None
            axes.plot(*zip(*points), dash, color=color, label=name, marker=marker, markersize=4)
        values = [value for points in panel["series"].values() for _, value in points]
        if panel["title"] == "Loss" and min(values) > 0 and max(values) / min(values) > LOG_SCALE_FROM:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_formatter(NullFormatter())
        if len(points) == 1:
            axes.set_xlim(points[0][0] - 1, points[0][0] + 1)
        axes.legend(loc="best")
    return figure
