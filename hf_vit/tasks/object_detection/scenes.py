"""Panoptic scenes, drawn here: shapes on a ground below a sky, a mask for each segment."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw

from hf_vit.tasks.object_detection.shapes import SHAPES, draw_shape
from hf_vit.vision.annotations.rows import AnnotatedImages, AnnotatedSplit, Annotation, Category, encode_mask

STUFF = ("sky", "ground")
SIDE = 64  # pixels
MAX_SHAPES = 4
NUM_IMAGES = {"train": 1200, "validation": 100, "test": 200}
_LEAST_AREA = 12  # pixels of a shape that are seen; one that others hide is no object
_EMPTY, _CROWDED = 0.05, 0.05  # parts of the scenes without a shape and with a crowd of them


def draw_scenes() -> AnnotatedImages:
    """1,200, 100 and 200 scenes of up to four circles, squares and triangles, which may hide each other, before sky
    and ground. One in twenty has no shape, and one in twenty a crowd, many small shapes of a kind that are annotated
    as one."""
    splits = {split: _draw_split(count, seed) for seed, (split, count) in enumerate(NUM_IMAGES.items())}
    names = (*SHAPES, *STUFF)
    categories = [Category(index, name, is_thing=name in SHAPES) for index, name in enumerate(names)]
    return AnnotatedImages(
        name="scenes",
        format="drawn",
        splits=splits,
        categories=dict.fromkeys(splits, categories),
        has_masks=True,
        license="cc0-1.0",
    )


def _draw_split(count: int, seed: int) -> AnnotatedSplit:
    generator = np.random.default_rng(seed)
    scenes = [draw_scene(generator) for _ in range(count)]
    images = Dataset.from_dict({"image": [picture for picture, _ in scenes]}, Features({"image": Image()}))
    return AnnotatedSplit(
        images=images,
        file_names=[f"{index}.png" for index in range(count)],
        sizes=[(SIDE, SIDE)] * count,
        annotations=[annotations for _, annotations in scenes],
    )


def draw_scene(generator: np.random.Generator) -> tuple[PILImage.Image, list[Annotation]]:
    """A scene and its segments, no two of which share a pixel."""
    sky = tuple(generator.integers((120, 170, 255), (200, 230, 256)).tolist())
    ground = tuple(generator.integers((80, 60, 20), (140, 110, 60)).tolist())
    picture, ids = PILImage.new("RGB", (SIDE, SIDE), sky), PILImage.new("L", (SIDE, SIDE), 1)
    pens = (ImageDraw.Draw(picture), ImageDraw.Draw(ids))
    left, right = generator.uniform(0.4 * SIDE, 0.8 * SIDE, 2).tolist()
    below = [(0, left), (SIDE, right), (SIDE, SIDE), (0, SIDE)]
    pens[0].polygon(below, fill=ground)
    pens[1].polygon(below, fill=2)
    kinds = {1: len(SHAPES), 2: len(SHAPES) + 1}  # the class of each segment
    has_crowd = generator.random() < _CROWDED
    count = 0 if generator.random() < _EMPTY else int(generator.integers(1, MAX_SHAPES + 1))
    for _ in range(count):
        kind = int(generator.integers(len(SHAPES)))
        side = float(generator.uniform(14, 28))
        _draw(pens, kind, side, len(kinds) + 1, generator)
        kinds[len(kinds) + 1] = kind
    crowd = len(kinds) + 1 if has_crowd else None
    if crowd is not None:
        kinds[crowd] = int(generator.integers(len(SHAPES)))
        for _ in range(8):
            _draw(pens, kinds[crowd], float(generator.uniform(5, 8)), crowd, generator)
    seen = np.asarray(ids)
    annotations = [
        Annotation(kind, segmentation=encode_mask(seen == number), is_crowd=number == crowd)
        for number, kind in kinds.items()
        if (seen == number).sum() >= _LEAST_AREA
    ]
    return picture, annotations


def _draw(
    pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    kind: int,
    side: float,
    number: int,
    generator: np.random.Generator,
) -> None:
    """A shape in the picture and, of the same pixels, in the map of ids."""
    left, top = generator.uniform(0, SIDE - side, 2).tolist()
    colour = tuple(generator.integers(0, 256, 3).tolist())
    corners = (left, top, left + side, top + side)
    draw_shape(pens[0], SHAPES[kind], corners, colour)
    draw_shape(pens[1], SHAPES[kind], corners, number)
