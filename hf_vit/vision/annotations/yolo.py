"""YOLO's folders: `data.yaml` with the names of the classes, and a text file of boxes or polygons for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_vit.vision.annotations.rows import (
    AnnotatedImages,
    AnnotatedSplit,
    Annotation,
    Category,
    image_files,
    polygons_to_mask,
)
from hf_vit.vision.annotations.sizes import image_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif")
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


def find(folder: Path) -> Path | None:
    """The YAML file with `names` and `train` in a folder, or the one that the path itself is."""
    candidates = [folder] if folder.is_file() else [*folder.glob("*.yaml"), *folder.glob("*.yml")]
    for path in sorted(candidates):
        if path.suffix in (".yaml", ".yml"):
            content = _read_yaml(path)
            if "names" in content and "train" in content:
                return path
    return None


def read(path: Path) -> AnnotatedImages:
    """The data set of a `data.yaml`.

    Raises:
        ValueError: there are no images, or a text file does not hold what YOLO's format says.
    """
    content = _read_yaml(path)
    names = content["names"]
    by_index = names if isinstance(names, dict) else dict(enumerate(names))
    categories = [Category(int(index), str(name)) for index, name in sorted(by_index.items())]
    root = Path(path.parent, content.get("path") or "")
    splits = {
        split: _read_split(_image_paths(path, root, content[key]))
        for key, split in _SPLITS.items()
        if content.get(key)
    }
    every = [each for split in splits.values() for of_image in split.annotations for each in of_image]
    return AnnotatedImages(
        name=path.parent.resolve().name,
        format="yolo",
        splits=splits,
        categories=dict.fromkeys(splits, categories),
        has_masks=any(each.segmentation for each in every),
        license=content.get("license") if isinstance(content.get("license"), str) else None,
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _image_paths(path: Path, root: Path, entries: str | list[str]) -> list[Path]:
    """Images of a split: folders, or text files that list images. Roboflow writes folders that begin with `../`
    though they stand beside the file."""
    found: list[Path] = []
    for entry in [entries] if isinstance(entries, str) else entries:
        choices = (root / entry, path.parent / entry, path.parent / entry.removeprefix("../"))
        chosen = next((choice for choice in choices if choice.exists()), None)
        if chosen is None:
            raise ValueError(f"{path.name} names {entry!r}, which does not exist beside it")
        if chosen.is_file():
            lines = chosen.read_text(encoding="utf-8").split()
            found += [Path(line) if Path(line).is_absolute() else chosen.parent / line for line in lines]
        else:
            found += sorted(each for each in chosen.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{path.name}: no images in {entries}")
    missing = [str(each) for each in found if not each.is_file()]
    if missing:
        raise ValueError(f"{path.name}: {len(missing)} images are missing: {', '.join(missing[:5])}")
    return found


def _labels_path(image: Path) -> Path:
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):  # the last folder called images
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_split(paths: list[Path]) -> AnnotatedSplit:
    sizes = [image_size({"path": str(path), "bytes": None}, index).shown for index, path in enumerate(paths)]
    return AnnotatedSplit(
        images=image_files(paths),
        file_names=[path.name for path in paths],
        sizes=[*sizes],
        annotations=[_read_labels(_labels_path(path), size) for path, size in zip(paths, sizes)],
    )


def _read_labels(path: Path, size: tuple[int, int]) -> list[Annotation]:
    """Lines of a class and a centred box, or a class and a polygon, in parts of the image's size."""
    if not path.is_file():
        return []  # an image without objects
    height, width = size
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            category, *numbers = map(float, line.split())
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected numbers, found {line!r}") from None
        if len(numbers) == 4:
            x, y, w, h = numbers
            found.append(Annotation(int(category), ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)))
        elif len(numbers) >= 6 and len(numbers) % 2 == 0:
            polygon = [value * (height if index % 2 else width) for index, value in enumerate(numbers)]
            xs, ys = polygon[::2], polygon[1::2]
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
            found.append(Annotation(int(category), box, polygons_to_mask([polygon], size)))
        else:
            raise ValueError(
                f"{path}, line {number}: a line is a class and a box of four numbers or a polygon of at least six, "
                f"found {len(numbers)}"
            )
    return found
