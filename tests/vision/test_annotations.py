"""Every format gives the same rows of the same scene, and what is wrong with annotations is told before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import annotated_folders
import datasets
import numpy as np
import pytest
from annotated_folders import SCENES, coco_content, draw, save_images
from PIL import Image, ImageOps
from pycocotools import mask as coco_masks

from hf_vit.vision.annotations import tables
from hf_vit.vision.annotations.checks import CheckedImages, check
from hf_vit.vision.annotations.load import load_annotated_images


def _coco(folder: Path, change: Any = None, scenes: Any = SCENES) -> CheckedImages:
    """The scene as COCO's JSON, after a change of its content."""
    save_images(folder / "images", scenes)
    content = coco_content(scenes)
    if change is not None:
        change(content)
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return check(load_annotated_images(str(folder)), needs_masks=True)


def _objects(found: CheckedImages, split: str = "train") -> list[list[tuple[str, tuple[float, ...]]]]:
    """Names and boxes of each image, ordered by the boxes."""
    rows = found.splits[split]["objects"]
    return [
        sorted((found.class_names[index], tuple(np.round(box, 2))) for index, box in zip(row["category"], row["bbox"]))
        for row in rows
    ]


EXPECTED = [
    sorted((annotated_folders.CATEGORIES[key], tuple(map(float, box))) for key, box in scene) for scene in SCENES
]

WRITERS = {
    "coco": annotated_folders.write_coco,
    "roboflow": annotated_folders.write_roboflow,
    "coco_panoptic": annotated_folders.write_panoptic,
    "yolo": lambda folder: annotated_folders.write_yolo(folder, polygons=False),
    "yolo_polygons": lambda folder: annotated_folders.write_yolo(folder, polygons=True),
    "voc": annotated_folders.write_voc,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_folder_gives_the_same_rows(name, tmp_path):
    found = check(load_annotated_images(str(WRITERS[name](tmp_path))))
    assert _objects(found) == EXPECTED
    report = found.reports["train"]
    assert (report.images, report.objects, report.empty, report.clamped, report.dropped) == (3, 3, 1, 0, 0)
    assert found.has_masks == (name not in ("yolo", "voc"))
    if found.has_masks:
        _assert_masks_are_the_boxes(found)


def _assert_masks_are_the_boxes(found: CheckedImages) -> None:
    for row in found.splits["train"]:
        for box, counts in zip(row["objects"]["bbox"], row["objects"]["segmentation"]):
            expected = np.zeros((row["height"], row["width"]), dtype=np.uint8)
            x, y, w, h = map(int, box)
            expected[y : y + h, x : x + w] = 1
            size = [row["height"], row["width"]]
            np.testing.assert_array_equal(coco_masks.decode({"size": size, "counts": counts.encode()}), expected)


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("instances", [True, False])
def test_both_shapes_of_a_column_of_objects_give_the_same_rows(as_dict, instances):
    data = {"train": annotated_folders.table(as_dict=as_dict, instances=instances)}
    found = check(tables.read(data, "scene", image_column="image"))
    assert _objects(found) == EXPECTED
    assert found.has_masks == instances
    if instances:
        _assert_masks_are_the_boxes(found)


@pytest.mark.parametrize("box_format", ["pascal_voc", "yolo"])
def test_other_formats_of_boxes_are_turned_into_pixels(box_format):
    data = annotated_folders.table(as_dict=True)

    def change(row: dict[str, Any]) -> dict[str, Any]:
        boxes = np.reshape(row["objects"]["bbox"], (-1, 4))
        x, y, w, h = boxes.T
        found = (
            [x, y, x + w, y + h]
            if box_format == "pascal_voc"
            else [(x + w / 2) / 64, (y + h / 2) / 48, w / 64, h / 48]
        )
        return {"objects": {**row["objects"], "bbox": np.stack(found, -1).tolist()}, "height": 48, "width": 64}

    data = data.map(
        change,
        features=datasets.Features(
            {**data.features, "height": datasets.Value("int32"), "width": datasets.Value("int32")}
        ),
    )
    found = check(tables.read({"train": data}, "scene", image_column="image", box_format=box_format))
    assert _objects(found) == EXPECTED


def test_the_original_ids_are_kept_whatever_their_gaps(tmp_path):
    found = _coco(tmp_path)
    assert found.class_names == ["square", "bar"]
    assert found.category_ids == [7, 3]
    assert found.splits["train"]["image_id"][:] == [10, 11, 12]


def test_splits_that_number_the_classes_in_another_order_are_matched_by_name(tmp_path):
    folder = annotated_folders.write_roboflow(tmp_path)
    path = folder / "valid/_annotations.coco.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["categories"] = [{"id": 3, "name": "square"}, {"id": 7, "name": "bar"}]
    for each in content["annotations"]:
        each["category_id"] = {3: 7, 7: 3}[each["category_id"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = check(load_annotated_images(str(folder)))
    assert _objects(found, "validation") == EXPECTED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_follow_exif(orientation, tmp_path):
    """An annotation of the stored pixels comes to where the object stands in the image that viewers show."""
    scene = [(7, (4, 6, 16, 10))]
    picture = draw(scene)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/0.png", exif=exif)
    (tmp_path / "train.json").write_text(json.dumps(coco_content([scene])), encoding="utf-8")
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "images/0.png")))
    told_as_shown = orientation < 5  # sizes do not tell the frames of the other orientations apart
    found = check(load_annotated_images(str(tmp_path)))
    row = found.splits["train"][0]
    assert (row["height"], row["width"]) == shown.shape[:2]
    assert found.reports["train"].exif_turned == (not told_as_shown)
    if told_as_shown:
        return
    is_red = (shown == (220, 40, 40)).all(-1)
    rows, columns = np.nonzero(is_red)
    expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    np.testing.assert_allclose(row["objects"]["bbox"][0], expected, atol=1e-4)
    counts = row["objects"]["segmentation"][0].encode()
    mask = coco_masks.decode({"size": [row["height"], row["width"]], "counts": counts})
    np.testing.assert_array_equal(mask.astype(bool), is_red)


def _set(index: int, **fields: Any):
    return lambda content: content["annotations"][index].update(fields)


def _many_outside(content):
    for each in content["annotations"]:
        x, y, w, h = each["bbox"]
        each["bbox"] = [x, y, x + w, y + h]  # another format


FAULTS = {
    "strings": (_set(0, bbox=["1", "2", "3", "4"]), r"boxes that are no boxes: 0\.png"),
    "nan": (_set(0, bbox=[1, 2, float("nan"), 4]), "boxes that are no boxes"),
    "three numbers": (_set(0, bbox=[1, 2, 3]), "boxes that are no boxes"),
    "unknown category": (_set(0, category_id=5), r"categories that its list lacks: 5 \(1\)"),
    "corners in the wrong order": (_set(0, bbox=[20, 22, -16, -16]), r"lie outside of their images.*0\.png \[20"),
    "corners": (_many_outside, "another box format"),
    "image not listed": (_set(0, image_id=99), "image 99, which the file does not list"),
    "mask of another size": (_set(0, segmentation={"size": [4, 4], "counts": [16]}), r"its mask has \[4, 4\]"),
    "flat polygon": (_set(0, segmentation=[[1, 2, 3, 4]]), "at least three corners"),
    "no objects": (lambda content: content["annotations"].clear(), "the train split holds no objects"),
    "two of one name": (lambda content: content["categories"].append({"id": 9, "name": "bar"}), "called 'bar'"),
    "some without masks": (_set(0, segmentation=[]), "objects without a mask beside others"),
    "missing images": (lambda content: content["images"][0].update(file_name="gone.png"), r"1 are not in .*gone\.png"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_before_training(name, tmp_path):
    change, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        _coco(tmp_path, change)


def test_who_asks_for_boxes_alone_needs_no_mask_of_each(tmp_path):
    save_images(tmp_path / "images")
    content = coco_content()
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert _objects(check(load_annotated_images(str(tmp_path)))) == EXPECTED


def test_slips_are_counted_and_mended(tmp_path):
    scenes = [[(7, (4, 6, 16, 16))] * 2 + [(3, (30, 10, 24, 8))], *[[(3, (2, 40, 60, 6))]] * 120]

    def change(content: dict[str, Any]) -> None:
        for each in content["annotations"]:
            del each["segmentation"]
        rows = content["annotations"]
        rows[3]["bbox"] = [-0.5, 40, 60, 6]  # half a pixel out
        rows[4]["bbox"] = [40, 40, 60, 6]  # 36 pixels out
        rows[5]["bbox"] = [3, 3, 0, 10]  # no area
        rows[6]["iscrowd"] = 1
        content["images"][7].update(height=24, width=32)  # annotated at half the size
        rows[9]["bbox"] = [1, 20, 30, 3]

    found = _coco(tmp_path, change, scenes)
    report = found.reports["train"]
    assert (report.duplicates, report.clamped, report.dropped, report.crowd, report.empty) == (1, 2, 1, 1, 1)
    assert report.size_differs == 1
    boxes = [row["bbox"] for row in found.splits["train"]["objects"]]
    assert boxes[1] == [[0.0, 40.0, 59.5, 6.0]]
    assert boxes[2] == [[40.0, 40.0, 24.0, 6.0]]
    assert found.splits["train"]["objects"][4]["iscrowd"] == [True]
    assert boxes[7] == [[2.0, 40.0, 60.0, 6.0]]


def test_a_folder_without_annotations_says_what_is_known(tmp_path):
    save_images(tmp_path)
    with pytest.raises(ValueError, match=r"no annotations that are known; .*COCO.*YOLO.*VOC.*objects"):
        load_annotated_images(str(tmp_path))


def test_a_map_with_other_instances_than_objects_is_refused():
    data = annotated_folders.table(as_dict=True, instances=True)
    data = data.remove_columns("instances")
    empty = [Image.fromarray(np.zeros((48, 64), dtype=np.uint8))] * 3
    columns = datasets.Dataset.from_dict({"instances": empty}, datasets.Features({"instances": datasets.Image()}))
    data = datasets.concatenate_datasets([data, columns], axis=1)
    with pytest.raises(ValueError, match=r"sample 0: its map lacks the instances \[1, 2\]"):
        tables.read({"train": data}, "scene", image_column="image")


def test_a_map_without_segments_holds_no_objects():
    """Maps and a column of their segments, none of which is listed."""
    maps = [Image.fromarray(np.zeros((48, 64), dtype=np.uint8))] * 3
    segment = {"id": datasets.Value("int32"), "category_id": datasets.ClassLabel(names=["square", "bar"])}
    features = {"image": datasets.Image(), "panoptic": datasets.Image(), "segments_info": datasets.List(segment)}
    columns = {"image": [draw(scene) for scene in SCENES], "panoptic": maps, "segments_info": [[], [], []]}
    data = datasets.Dataset.from_dict(columns, datasets.Features(features))
    with pytest.raises(ValueError, match="the train split holds no objects"):
        check(tables.read({"train": data}, "scene", image_column="image"))
