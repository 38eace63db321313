"""One scene of coloured rectangles, written in each format that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

SIZE = (48, 64)  # height, width
CATEGORIES = {7: "square", 3: "bar"}  # ids with gaps, in no order
# One list an image of (category id, (x, y, width, height)); the last image is empty.
SCENES: list[list[tuple[int, tuple[int, int, int, int]]]] = [
    [(7, (4, 6, 16, 16)), (3, (30, 10, 24, 8))],
    [(3, (2, 40, 60, 6))],
    [],
]
_COLOURS = {7: (220, 40, 40), 3: (40, 60, 220)}


def draw(scene: list[tuple[int, tuple[int, int, int, int]]]) -> Image.Image:
    picture = Image.new("RGB", SIZE[::-1], (230, 230, 230))
    for category, (x, y, w, h) in scene:
        ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + h - 1), fill=_COLOURS[category])
    return picture


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco_content(scenes: Any = SCENES, *, masks: bool = True) -> dict[str, Any]:
    annotations = []
    for image_id, scene in enumerate(scenes):
        for category, box in scene:
            one = {"id": len(annotations), "image_id": 10 + image_id, "category_id": category, "bbox": list(box)}
            one["area"] = box[2] * box[3]
            annotations.append({**one, "iscrowd": 0, **({"segmentation": [polygon(box)]} if masks else {})})
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(len(scenes))]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }


def save_images(folder: Path, scenes: Any = SCENES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        draw(scene).save(folder / f"{index}.png")


def write_coco(folder: Path, *, masks: bool = True) -> Path:
    save_images(folder / "train2017")
    (folder / "annotations").mkdir()
    content = json.dumps(coco_content(masks=masks))
    (folder / "annotations/instances_train2017.json").write_text(content, encoding="utf-8")
    return folder


def write_roboflow(folder: Path) -> Path:
    for split in ("train", "valid"):
        save_images(folder / split)
        content = json.dumps(coco_content())
        (folder / split / "_annotations.coco.json").write_text(content, encoding="utf-8")
    return folder


def write_panoptic(folder: Path) -> Path:
    save_images(folder / "train")
    maps = folder / "annotations/panoptic_train"
    maps.mkdir(parents=True)
    annotations = []
    for index, scene in enumerate(SCENES):
        ids = np.zeros(SIZE, dtype=np.int64)
        segments = []
        for number, (category, (x, y, w, h)) in enumerate(scene, start=1):
            ids[y : y + h, x : x + w] = 300 * number  # more than a byte holds
            segments.append({"id": 300 * number, "category_id": category})
        parts = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(parts).save(maps / f"{index}.png")
        annotations.append({"image_id": 10 + index, "file_name": f"{index}.png", "segments_info": segments})
    content = {**coco_content(), "annotations": annotations}
    content["categories"] = [{**each, "isthing": int(each["name"] == "square")} for each in content["categories"]]
    (folder / "annotations/panoptic_train.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_yolo(folder: Path, *, polygons: bool) -> Path:
    save_images(folder / "images/train")
    (folder / "labels/train").mkdir(parents=True)
    names = list(CATEGORIES)
    height, width = SIZE
    for index, scene in enumerate(SCENES):
        lines = []
        for category, box in scene:
            x, y, w, h = box
            numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if polygons:
                numbers = [value / (height if i % 2 else width) for i, value in enumerate(polygon(box))]
            lines.append(" ".join(map(str, [names.index(category), *numbers])))
        if lines:
            (folder / f"labels/train/{index}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "data.yaml").write_text("train: images/train\nnames: [square, bar]\n", encoding="utf-8")
    return folder


def write_voc(folder: Path) -> Path:
    save_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for index, scene in enumerate(SCENES):
        objects = "".join(
            f"<object><name>{CATEGORIES[category]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for category, (x, y, w, h) in scene
        )
        text = f"<annotation><filename>{index}.png</filename>{objects}</annotation>"
        (folder / f"Annotations/{index}.xml").write_text(text, encoding="utf-8")
    return folder


def table(*, as_dict: bool, instances: bool = False) -> datasets.Dataset:
    """The scene with a column `objects`, whose lists are one dictionary or whose objects are dictionaries."""
    names = list(CATEGORIES)
    one = {"bbox": datasets.List(datasets.Value("float32")), "category": datasets.ClassLabel(names=["square", "bar"])}
    rows: list[Any] = [
        [{"bbox": list(map(float, box)), "category": names.index(category)} for category, box in scene]
        for scene in SCENES
    ]
    feature: Any = datasets.List(one)
    if as_dict:
        rows = [{key: [each[key] for each in row] for key in one} for row in rows]
        feature = {key: datasets.List(value) for key, value in one.items()}
    columns = {"image": [draw(scene) for scene in SCENES], "objects": rows}
    features = {"image": datasets.Image(), "objects": feature}
    if instances:
        columns["instances"] = [Image.fromarray(_instances(scene)) for scene in SCENES]
        features["instances"] = datasets.Image()
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _instances(scene: list[tuple[int, tuple[int, int, int, int]]]) -> np.ndarray:
    found = np.zeros(SIZE, dtype=np.uint16)
    for number, (_, (x, y, w, h)) in enumerate(scene, start=1):
        found[y : y + h, x : x + w] = number
    return found
