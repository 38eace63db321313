"""The figures of the card of a translation model, beside those that all cards share."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_vit.cards.figures import SHADES, from_data
from hf_vit.cards.format import shorten

MAX_TOKENS = 40  # more tokens along a side cannot be read: the first ones are shown
MAX_TOKEN_LENGTH = 16


def _attended(facts: Any) -> list[dict]:
    return [
        {
            "source": [shorten(token, MAX_TOKEN_LENGTH) for token in row.source[:MAX_TOKENS]],
            "target": [shorten(token, MAX_TOKEN_LENGTH) for token in row.target[:MAX_TOKENS]],
            "map": [line[:MAX_TOKENS] for line in row.map[:MAX_TOKENS]],
        }
        for row in facts.measured.cross_attention
    ]


@from_data(_attended)
def cross_attention(rows: list[dict]) -> Figure:
    """How much of its attention each token of a translation (row) gives to each token of the source (column)."""
    cell = 0.24  # inches
    above = [max(0.9, 0.3 + 0.08 * max(map(len, row["source"]))) for row in rows]  # the source's tokens, upright
    heights = [cell * len(row["target"]) + space for row, space in zip(rows, above)]
    width = min(7.2, cell * max(len(row["source"]) for row in rows) + 1.6)
    figure = Figure(figsize=(max(width, 3.6), sum(heights)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0], rows):
        axes.imshow(np.array(row["map"]), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(row["source"])), row["source"], fontsize=9, rotation=90)
        axes.set_yticks(range(len(row["target"])), row["target"], fontsize=9)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure
