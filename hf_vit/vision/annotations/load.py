"""Annotated images of any format that is known, found out by looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit.sources import holds_data_files, is_saved, load_source
from hf_vit.vision.annotations import coco, tables, voc, yolo
from hf_vit.vision.annotations.rows import AnnotatedImages
from hf_vit.vision.columns import find_image_column


def load_annotated_images(
    name: str,
    config_name: str | None = None,
    *,
    revision: str | None = None,
    image_column: str | None = None,
    box_format: str = "coco",
    class_names: Sequence[str] | None = None,
) -> AnnotatedImages:
    """The data set of a folder (COCO, COCO panoptic, YOLO, Pascal VOC, or what `datasets` reads) or of the Hub.

    Args:
        image_column, box_format, class_names: of a table of `datasets`; see `tables.read`.

    Raises:
        ValueError: no format that is known, or the data is not what its format says.
    """
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.startswith(".") or len(path.parts) > 2):
        raise ValueError(f"--dataset_name: no such folder: {name!r}")
    if path.exists() and not _is_table(path):
        return _read_files(path)
    found = load_source(name, config_name, revision=revision, built_in={})
    column = find_image_column_among(found, image_column)
    return tables.read(
        found,
        path.resolve().name if path.exists() else name,
        image_column=column,
        box_format=box_format,
        class_names=class_names,
    )


def find_image_column_among(found: Mapping[str, Any], wanted: str | None) -> str:
    """The column of images in splits that may have columns of maps too."""
    first = next(iter(found.values()))
    if wanted is None and "image" in first.column_names:
        return "image"
    return find_image_column(first, wanted)


def _is_table(path: Path) -> bool:
    described = any(any(path.glob(pattern)) for pattern in ("metadata.*", "*/metadata.*"))
    return path.is_dir() and (is_saved(path) or described or holds_data_files(path))


def _read_files(path: Path) -> AnnotatedImages:
    described = yolo.find(path)
    if described is not None:
        return yolo.read(described)
    if coco.find(path):
        return coco.read(path)
    if voc.find(path):
        return voc.read(path)
    raise ValueError(
        f"--dataset_name {str(path)!r}: no annotations that are known; a folder holds annotations/*.json or "
        "_annotations.coco.json (COCO), data.yaml (YOLO), Annotations/*.xml (Pascal VOC), or parquet or "
        "metadata.jsonl with a column `objects`"
    )
