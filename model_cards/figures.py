"""The figures of a card: light background, colours that every reader can tell apart, text large enough for a phone."""

import io

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .facts import CardFacts

# Okabe and Ito's palette: distinguishable with any common colour-vision deficiency.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5F6368"
STYLE = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#202124",
    "axes.grid": True,
    "grid.color": "#E3E5E8",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "text.parse_math": False,
}
DPI = 144
LOG_SCALE_FROM = 50  # a loss that falls by more than this factor is unreadable on a linear axis


def learning_curves(facts: CardFacts) -> bytes | None:
    """Loss and accuracy against the epoch as a PNG, or None when no epoch was recorded."""
    train = _series(facts, lambda epoch: epoch.get("train_loss"))
    loss = _series(facts, lambda epoch: epoch.get("metrics", {}).get("loss"))
    accuracy = _series(facts, lambda epoch: epoch.get("metrics", {}).get("accuracy"), scale=100)
    panels = [("Loss", "loss (nats)", [("train", train, BLUE), (facts.evaluated_split or "evaluation", loss, ORANGE)])]
    panels.append(("Accuracy", "accuracy (%)", [(facts.evaluated_split or "evaluation", accuracy, ORANGE)]))
    panels = [(title, label, [line for line in lines if line[1]]) for title, label, lines in panels]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(panels), 3.3), layout="constrained")
        for axes, (title, label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            for name, points, color in lines:
                marker = "o" if len(points) <= 15 else None
                axes.plot(*zip(*points), color=color, label=name, marker=marker, markersize=4)
            values = [value for _, points, _ in lines for _, value in points]
            if title == "Loss" and min(values) > 0 and max(values) / min(values) > LOG_SCALE_FROM:
                axes.set_yscale("log")
            if len(points) == 1:
                axes.set_xlim(points[0][0] - 1, points[0][0] + 1)
            axes.legend(loc="lower right" if title == "Accuracy" else "upper right")
        return _png(figure)


def _series(facts: CardFacts, read, scale: float = 1) -> list[tuple[float, float]]:
    points = ((epoch["epoch"], read(epoch)) for epoch in facts.epochs)
    return [(epoch, scale * value) for epoch, value in points if value is not None]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software version in the file: the same records give the same bytes from one library version to the next.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
