"""Scenes of coloured shapes, drawn here: what a detector learns from in minutes, without a network or a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw

from hf_vit.vision.annotations.rows import AnnotatedImages, AnnotatedSplit, Annotation, Category

SHAPES = ("circle", "square", "triangle")
SIDE = 64  # pixels
MAX_SHAPES = 5
NUM_IMAGES = {"train": 1500, "validation": 100, "test": 200}
_SUPERSAMPLING = 4  # so that edges are smooth
_MAX_OVERLAP = 0.2  # of the smaller of two boxes


def draw_shapes() -> AnnotatedImages:
    """1,500, 100 and 200 scenes of up to five circles, squares and triangles, some of which hide parts of others; one
    in some twenty scenes is empty."""
    splits = {split: _draw_split(count, seed) for seed, (split, count) in enumerate(NUM_IMAGES.items())}
    categories = [Category(index, name) for index, name in enumerate(SHAPES)]
    return AnnotatedImages(
        name="shapes",
        format="drawn",
        splits=splits,
        categories=dict.fromkeys(splits, categories),
        has_masks=False,
        license="cc0-1.0",
    )


def _draw_split(count: int, seed: int) -> AnnotatedSplit:
    generator = np.random.default_rng(seed)
    scenes = [_draw_scene(generator) for _ in range(count)]
    features = Features({"image": Image()})
    images = Dataset.from_dict({"image": [picture for picture, _ in scenes]}, features)
    return AnnotatedSplit(
        images=images,
        file_names=[f"{index}.png" for index in range(count)],
        sizes=[(SIDE, SIDE)] * count,
        annotations=[annotations for _, annotations in scenes],
    )


def _draw_scene(generator: np.random.Generator) -> tuple[PILImage.Image, list[Annotation]]:
    background = tuple(generator.integers(0, 256, 3).tolist())
    picture = PILImage.new("RGB", (SIDE * _SUPERSAMPLING,) * 2, background)
    annotations: list[Annotation] = []
    for _ in range(generator.integers(0 if generator.random() < 0.25 else 1, MAX_SHAPES + 1)):
        side = float(generator.uniform(14, 40))
        left, top = generator.uniform(0, SIDE - side, 2).tolist()
        box = (left, top, side, side)
        if any(_overlap(box, each.bbox) > _MAX_OVERLAP for each in annotations):
            continue
        category = int(generator.integers(len(SHAPES)))
        x, y, length = (_SUPERSAMPLING * value for value in (left, top, side))
        corners = (x, y, x + length, y + length)
        draw_shape(ImageDraw.Draw(picture), SHAPES[category], corners, _contrasting(generator, background))
        annotations.append(Annotation(category, box))
    return picture.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS), annotations


def _overlap(a: tuple[float, ...], b: object) -> float:
    left, top, w, h = np.asarray(b)
    inside_x = min(a[0] + a[2], left + w) - max(a[0], left)
    inside_y = min(a[1] + a[3], top + h) - max(a[1], top)
    return max(inside_x, 0) * max(inside_y, 0) / min(a[2] * a[3], w * h)


def _contrasting(generator: np.random.Generator, background: tuple[int, ...]) -> tuple[int, ...]:
    while True:
        colour = generator.integers(0, 256, 3)
        if np.abs(colour - background).max() > 80:
            return tuple(colour.tolist())


def draw_shape(draw: ImageDraw.ImageDraw, name: str, corners: tuple[float, float, float, float], fill: Any) -> None:
    """A filled shape within the corners (left, top, right, bottom)."""
    left, top, right, bottom = corners
    if name == "circle":
        draw.ellipse(corners, fill=fill)
    elif name == "square":
        draw.rectangle(corners, fill=fill)
    else:
        draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
