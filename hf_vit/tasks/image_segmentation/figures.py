"""The figures of the card of a segmenter, beside those that all cards share."""

import io
from typing import Any

import numpy as np
from matplotlib import colormaps, patches
from matplotlib.figure import Figure
from PIL import Image

from hf_vit.cards.figures import from_data
from hf_vit.cards.format import shorten

MAX_SAMPLES = 6
MAX_NAMED = 12  # classes of the legend
_TITLES = {"file": "image", "found": "found", "annotated": "annotated"}
_BORDER = 255  # of `evaluation.class_map`
_OPACITY = 0.6


def _first_samples(facts: Any) -> list[dict]:
    rows = [
        {name: (facts.folder / sample[name]).read_bytes().hex() for name in _TITLES}
        for sample in facts.samples[:MAX_SAMPLES]
    ]
    return [{**row, "class_names": facts.class_names} for row in rows]


@from_data(_first_samples)
def samples(rows: list[dict]) -> Figure:
    """Images beside the segments that were found and those that are annotated, a colour for each class."""
    read = [{name: Image.open(io.BytesIO(bytes.fromhex(row[name]))) for name in _TITLES} for row in rows]
    aspect = max(pictures["file"].height / pictures["file"].width for pictures in read)
    figure = Figure(figsize=(7.2, len(rows) * 7.2 / 3 * aspect + 0.6), layout="constrained")
    seen: set[int] = set()
    for number, (line, pictures) in enumerate(zip(figure.subplots(len(rows), 3, squeeze=False), read)):
        photograph = np.asarray(pictures["file"].convert("RGB"))
        for axes, (name, title) in zip(line, _TITLES.items()):
            axes.axis("off")
            drawn = photograph
            if name != "file":
                classes = np.asarray(pictures[name])
                seen |= set(np.unique(classes).tolist()) - {0, _BORDER}
                drawn = painted(photograph, classes)
            axes.imshow(drawn, interpolation="nearest" if max(photograph.shape) < 128 else "antialiased")
            if number == 0:
                axes.set_title(title, fontsize=9)
    names = rows[0]["class_names"]
    shown = [number for number in sorted(seen) if number <= len(names)][:MAX_NAMED]
    handles = [patches.Patch(color=_colour(number), label=shorten(names[number - 1], 18)) for number in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def painted(photograph: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """A photograph (H, W, 3) uint8 under the colours of a map of classes (H, W), segments bordered in white."""
    colours = np.array([(0.0, 0.0, 0.0), *(_colour(number) for number in range(1, 256))])
    colours[_BORDER] = 1.0
    opacity = np.where(classes == 0, 0.0, np.where(classes == _BORDER, 1.0, _OPACITY))[..., None]
    return (photograph * (1 - opacity) + 255 * colours[classes] * opacity).astype(np.uint8)


def _colour(number: int) -> tuple[float, float, float]:
    return tuple(colormaps["tab20"]((number - 1) % 20)[:3])  # type: ignore[return-value]  # three
