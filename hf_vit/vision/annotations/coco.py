"""COCO's folders: JSON of boxes, polygons and run lengths, or of panoptic segments beside PNG maps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from hf_vit.vision.annotations.rows import (
    AnnotatedImages,
    AnnotatedSplit,
    Annotation,
    Category,
    encode_mask,
    image_files,
    polygons_to_mask,
    split_of,
)

_ROBOFLOW_FILE = "_annotations.coco.json"


def find(folder: Path) -> dict[str, Path]:
    """The annotation file of each split in a folder laid out as COCO's or Roboflow's, none if it is neither."""
    candidates = [*sorted(folder.glob("annotations/*.json")), *sorted(folder.glob(f"*/{_ROBOFLOW_FILE}"))]
    candidates += sorted(folder.glob("*.json"))
    found: dict[str, Path] = {}
    for path in candidates:
        if not _is_annotation_file(path):
            continue
        split = split_of(path.parent.name if path.name == _ROBOFLOW_FILE else path.stem) or "train"
        if split in found:
            raise ValueError(
                f"two files hold annotations of the {split} split, {found[split]} and {path}: keep one of them there"
            )
        found[split] = path
    return found


def read(folder: Path) -> AnnotatedImages:
    """The data set of a folder that `find` knows.

    Raises:
        ValueError: a file is not what COCO's format says, or images are missing.
    """
    splits: dict[str, AnnotatedSplit] = {}
    categories: dict[str, list[Category]] = {}
    panoptic = False
    has_masks = False
    for split, path in find(folder).items():
        content = _read_json(path)
        categories[split] = [
            Category(int(each["id"]), str(each["name"]), bool(each.get("isthing", 1)))
            for each in content["categories"]
        ]
        panoptic = any("segments_info" in each for each in content["annotations"][:1])
        paths = _image_paths(folder, path, split, [image["file_name"] for image in content["images"]])
        annotations = _panoptic_annotations(folder, path, content) if panoptic else _annotations(path, content)
        has_masks |= panoptic or any(each.segmentation for of_image in annotations for each in of_image)
        splits[split] = AnnotatedSplit(
            images=image_files(paths),
            file_names=[image["file_name"] for image in content["images"]],
            sizes=[_size(image) for image in content["images"]],
            annotations=annotations,
            image_ids=[image["id"] for image in content["images"]],
        )
    return AnnotatedImages(
        name=folder.resolve().name,
        format="coco_panoptic" if panoptic else "coco",
        splits=splits,
        categories=categories,
        has_masks=has_masks,
    )


def _is_annotation_file(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if b'"images"' not in start and b'"annotations"' not in start and b'"categories"' not in start:
        return False
    content = _read_json(path)
    if not all(isinstance(content.get(name), list) for name in ("images", "annotations", "categories")):
        return False
    first: dict[str, Any] = next(iter(content["annotations"]), {})
    return not content["annotations"] or "bbox" in first or "segments_info" in first


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None


def _annotations(path: Path, content: dict[str, Any]) -> list[list[Annotation]]:
    sizes = {image["id"]: _size(image) for image in content["images"]}
    by_image: dict[Any, list[Annotation]] = defaultdict(list)
    for each in content["annotations"]:
        where = f"{path.name}: annotation {each.get('id')}"
        if each["image_id"] not in sizes:
            raise ValueError(f"{where} is of image {each['image_id']!r}, which the file does not list")
        try:
            mask = _mask(each.get("segmentation"), sizes[each["image_id"]])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        by_image[each["image_id"]].append(
            Annotation(each["category_id"], each.get("bbox"), mask, bool(each.get("iscrowd", 0)), each.get("area"))
        )
    return [by_image[image["id"]] for image in content["images"]]


def _mask(segmentation: Any, size: tuple[int, int] | None) -> dict[str, Any] | None:
    if not segmentation:
        return None
    if size is None:
        raise ValueError("its image has no width and height, which masks need")
    if isinstance(segmentation, list):
        return polygons_to_mask(segmentation, size)
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"its mask has {segmentation['size']} pixels (height, width), its image {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return coco_masks.frPyObjects(segmentation, *size)
    return {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}


def _panoptic_annotations(folder: Path, path: Path, content: dict[str, Any]) -> list[list[Annotation]]:
    """Segments of the PNG maps, which lie in a folder named as the JSON file."""
    maps = next((each for each in (path.with_suffix(""), folder / path.stem) if each.is_dir()), None)
    if maps is None:
        raise ValueError(f"{path.name}: no folder {path.with_suffix('').name} with its PNG maps stands beside it")
    by_image = {each["image_id"]: each for each in content["annotations"]}
    found: list[list[Annotation]] = []
    for image in content["images"]:
        annotation = by_image.get(image["id"])
        if annotation is None:
            found.append([])
            continue
        with Image.open(maps / annotation["file_name"]) as picture:
            found.append(panoptic_segments(np.asarray(picture), annotation["segments_info"]))
    return found


def panoptic_segments(picture: np.ndarray, segments: Iterable[dict[str, Any]]) -> list[Annotation]:
    """Segments of a map (H, W) of their ids, or (H, W, 3) of R + 256 G + 65536 B.

    Raises:
        ValueError: a segment has no pixel.
    """
    ids = picture.astype(np.int64)
    if ids.ndim == 3:
        ids = ids[..., 0] + 256 * ids[..., 1] + 65536 * ids[..., 2]
    found = []
    for segment in segments:
        mask = ids == segment["id"]
        if not mask.any():
            raise ValueError(f"segment {segment['id']} has no pixel in its map")
        is_crowd = bool(segment.get("iscrowd", 0))
        found.append(Annotation(segment["category_id"], None, encode_mask(mask), is_crowd))
    return found


def _image_paths(folder: Path, annotations: Path, split: str, names: Sequence[str]) -> list[Path]:
    """Where the images lie: beside the annotations, in the folder, or in one named after the split or the file.

    Raises:
        ValueError: images are missing; names the first of them.
    """
    own = annotations.stem.split("_")[-1]  # train2017 of instances_train2017
    around = [annotations.parent, folder, folder / "images", folder / split, folder / own]
    around += [folder / "images" / split, folder / "images" / own]
    around += sorted(each for each in folder.iterdir() if each.is_dir() and split_of(each.name) == split)
    missing: list[str] = list(names)
    for root in around:
        paths = [root / name for name in names]
        absent = [name for name, path in zip(names, paths) if not path.is_file()]
        if not absent:
            return paths
        missing = absent if len(absent) < len(missing) else missing
    raise ValueError(
        f"{annotations.name} lists {len(names)} images of which {len(missing)} are not in {folder}: "
        f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
    )
