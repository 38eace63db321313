"""Explanations as pictures, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_vit.explain.alignment import Alignment
from hf_vit.explain.explanation import ClassExplanation, Explanation, as_seen, class_heat_map, class_index
from hf_vit.explain.objects import ObjectsExplanation
from hf_vit.explain.overlay import overlay
from hf_vit.explain.reading import Reading
from hf_vit.extras import extra

with extra("hub"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

COLUMNS = 4
MAX_HEADS = 12
MAX_TOKENS = 23
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#5F6368"  # Okabe and Ito's
_STYLE: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def draw_explanation(explanation: Explanation) -> bytes:
    """A PNG of an explanation: the image, each class's map over it and its curves, attention and features."""
    image = explanation.image.numpy()
    height = max(0.6, min(1.6, image.shape[0] / image.shape[1]))
    heads = explanation.heads[:MAX_HEADS].numpy()
    num_panels = 2 + 2 * len(explanation.classes) + 2 + len(heads)
    lines = -(-num_panels // COLUMNS)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.7 * COLUMNS, lines * (2.5 * height + 0.75) + 0.4), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        remaining = iter(panels)
        _show(next(remaining), image, "as the model sees it")
        for each in explanation.classes:
            _show(next(remaining), overlay(image, each.heat_map.numpy(), signed=each.is_exact), _title_of(each))
        for each in explanation.classes:
            drawn = _draw_curves(next(remaining), each, height)
        _show(next(remaining), overlay(image, explanation.rollout.numpy()), "attention, all layers")
        _show(next(remaining), explanation.features.numpy(), "features (PCA)")
        _draw_distance(next(remaining), explanation.distance.numpy(), height)
        for index, head in enumerate(heads, 1):
            _show(next(remaining), overlay(image, head), f"last layer, head {index}")
        for axes in remaining:
            axes.axis("off")
        figure.legend(handles=drawn, loc="outside lower center", ncols=len(drawn), frameon=False)
        return _png(figure)


def draw_heat_map(model: PreTrainedModel, processor: Any, image: Image.Image, class_name: str) -> Image.Image:
    """The map of one class, by name or index, over an image as the model sees it, of at least 256 pixels.

    Raises:
        ValueError: there is no such class.
    """
    index = class_index(model, class_name)
    pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    heat_map, _, bias = class_heat_map(model.eval(), pixel_values, index)
    drawn = overlay(as_seen(processor, pixel_values).numpy(), heat_map[0].numpy(), signed=bias is not None)
    scale = max(1, -(-256 // min(drawn.size)))
    return drawn.resize((scale * drawn.width, scale * drawn.height), Image.Resampling.NEAREST)


def draw_alignment(alignment: Alignment) -> bytes:
    """A PNG of an alignment: a row for each token of the translation, a column for each of the source."""
    rows, columns = alignment.weights.shape
    size = (max(3.0, 0.34 * columns + 1.5), max(2.5, 0.34 * rows + 1.2))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(alignment.weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(columns), _escaped(alignment.source), rotation=90)
        axes.set_yticks(range(rows), _escaped(alignment.target))
        axes.set(xlabel="source", ylabel="translation")
        figure.colorbar(shown, label="attention")
        return _png(figure)


def draw_found(explanation: ObjectsExplanation) -> bytes:
    """A PNG of what a detector found: the image, and for each object where it was looked for, with its box."""
    image = explanation.image.numpy()
    height, width = image.shape[:2]
    panels: list[tuple[Any, str, Any]] = [(image, "as the model sees it", explanation.objects)]
    for each in explanation.objects:
        panels.append((overlay(image, each.heat_map.numpy()), f"{each.label[:18]} ({each.score:.3f})", [each]))

    def draw(axes: Axes, panel: Any) -> None:
        picture, title, objects = panel
        _show(axes, picture, _escaped([title])[0])
        scale = (picture.shape[1] if hasattr(picture, "shape") else picture.width) / width
        for each in objects:
            left, top, right, bottom = (each.box * torch.tensor([width, height] * 2) * scale).tolist()
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, color=_ORANGE, linewidth=1.5)
            )

    return _drawn(panels, height / width, draw)


def draw_reading(reading: Reading) -> bytes:
    """A PNG of a text that was read: the image, and for each token where the decoder looked, at most 23 of them."""
    image = reading.image.numpy()
    panels: list[tuple[Any, str]] = [(image, "as the model sees it")]
    for token, weights in zip(reading.tokens[:MAX_TOKENS], reading.weights):
        panels.append((overlay(image, weights.numpy()), token[:18]))
    return _drawn(
        panels, image.shape[0] / image.shape[1], lambda axes, panel: _show(axes, panel[0], _escaped([panel[1]])[0])
    )


def _drawn(panels: Sequence[Any], aspect: float, draw: Callable[[Axes, Any], None]) -> bytes:
    """A PNG of panels of one aspect (height over width), each drawn by `draw`."""
    lines, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(2.7 * columns, lines * (2.5 * max(0.2, min(1.6, aspect)) + 0.5)), layout="constrained"
        )
        for axes, panel in zip_longest(figure.subplots(lines, columns, squeeze=False).ravel(), panels):
            if panel is None:
                axes.axis("off")
            else:
                draw(axes, panel)
        return _png(figure)


def _escaped(names: Sequence[str]) -> list[str]:
    return [name.replace("$", r"\$") for name in names]  # no formulas


def _title_of(each: ClassExplanation) -> str:
    what = "evidence" if each.is_exact else "relevance"
    return f"{what} for {_escaped([each.label[:18]])[0]} ({each.score:.3f})"


def _show(axes: Axes, image: Any, title: str) -> None:
    side = max(image.shape[:2] if hasattr(image, "shape") else image.size)
    axes.imshow(image, interpolation="nearest" if side < 64 else "antialiased")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_curves(axes: Axes, each: ClassExplanation, height: float) -> list[Line2D]:
    """Draws the four curves of a class; returns the lines, for a legend."""
    steps = 100 * each.curves.fractions.numpy()
    lines = []
    for curves, dash, order in ((each.curves, "-", ""), (each.chance, ":", ", by chance")):
        lines += axes.plot(steps, curves.deletion[0].numpy(), dash, color=_ORANGE, label=f"deletion{order}")
        lines += axes.plot(steps, curves.insertion[0].numpy(), dash, color=_BLUE, label=f"insertion{order}")
    axes.set_title(f"score of {_escaped([each.label[:18]])[0]}", fontsize=10)
    axes.set_xlabel("patches (%)")
    axes.set_box_aspect(height)
    return lines


def _draw_distance(axes: Axes, distance: Any, height: float) -> None:
    layers = range(1, len(distance) + 1)
    for heads in distance.T:
        axes.plot(layers, heads, "o", color=_GREY, markersize=3)
    axes.plot(layers, distance.mean(1), color=_BLUE)
    axes.set_title("attention distance", fontsize=10)
    axes.set(xlabel="layer", ylabel="pixels")
    axes.set_ylim(bottom=0)
    axes.set_box_aspect(height)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


__all__ = ["draw_alignment", "draw_explanation", "draw_found", "draw_heat_map", "draw_reading"]
