"""Pascal VOC's folders: an XML file of boxes for each image, and lists of the splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from hf_vit.vision.annotations.rows import AnnotatedImages, AnnotatedSplit, Annotation, Category, image_files, split_of


def find(folder: Path) -> dict[str, list[Path]]:
    """The XML files of each split: by `ImageSets/Main/*.txt` over `Annotations/`, or in folders named after splits,
    or all of the folder as one; none if there are none."""
    annotations = folder / "Annotations"
    if annotations.is_dir():
        lists = {path.stem: path for path in sorted(folder.glob("ImageSets/Main/*.txt"))}
        named = {"train": "train", "validation": "val", "test": "test"}
        if "train" in lists:
            return {
                split: [annotations / f"{line.split()[0]}.xml" for line in _lines(lists[name])]
                for split, name in named.items()
                if name in lists
            }
        files = sorted(annotations.glob("*.xml"))
        return {"train": files} if files else {}
    by_folder = {
        split: sorted(each.rglob("*.xml"))
        for each in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if each.is_dir() and (split := split_of(each.name)) is not None
    }
    found = {split: files for split, files in by_folder.items() if files}
    if not found and folder.is_dir() and any(folder.glob("*.xml")):
        found = {"train": sorted(folder.glob("*.xml"))}
    return found


def read(folder: Path) -> AnnotatedImages:
    """The data set of a folder that `find` knows; categories are sorted by name.

    Raises:
        ValueError: a file is not VOC's XML, or its image is missing.
    """
    parsed = {split: [_read_file(folder, path) for path in files] for split, files in find(folder).items()}
    names = sorted({name for files in parsed.values() for each in files for name, _, _ in each.objects})
    index_of = {name: index for index, name in enumerate(names)}
    splits = {
        split: AnnotatedSplit(
            images=image_files([each.image for each in files]),
            file_names=[each.image.name for each in files],
            sizes=[each.size for each in files],
            annotations=[
                [Annotation(index_of[name], box, is_crowd=is_crowd) for name, box, is_crowd in each.objects]
                for each in files
            ],
        )
        for split, files in parsed.items()
    }
    categories = [Category(index, name) for name, index in index_of.items()]
    return AnnotatedImages(
        name=folder.resolve().name,
        format="voc",
        splits=splits,
        categories=dict.fromkeys(splits, categories),
        has_masks=False,
    )


class _File:
    def __init__(
        self,
        image: Path,
        size: tuple[int, int] | None,
        objects: Sequence[tuple[str, tuple[float, float, float, float], bool]],
    ):
        self.image = image
        self.size = size
        self.objects = objects


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_file(folder: Path, path: Path) -> _File:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    name = root.findtext("filename") or f"{path.stem}.jpg"
    stem = Path(name).stem
    around = (folder / "JPEGImages" / name, path.parent / name, folder / name, path.with_suffix(Path(name).suffix))
    image = next((each for each in around if each.is_file()), None)
    image = image or next(iter(sorted((folder / "JPEGImages").glob(f"{stem}.*"))), None)
    if image is None:
        raise ValueError(f"{path.name}: its image {name!r} is neither beside it nor in JPEGImages")
    objects = []
    for each in root.iter("object"):
        numbers = [each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(number or "") for number in numbers)
        except ValueError:
            raise ValueError(f"{path.name}: a box must be four numbers, found {numbers}") from None
        # VOC counts pixels from 1 and includes the last: the box of one pixel has xmin = xmax.
        box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
        objects.append((each.findtext("name") or "", box, each.findtext("difficult") == "1"))
    height, width = root.findtext("size/height"), root.findtext("size/width")
    size = (int(height), int(width)) if height and width and int(height) and int(width) else None
    return _File(image, size, objects)
