"""Boxes and masks follow their images through every view, and average precision is what another tool computes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
import torch
from annotated_folders import coco_content, save_images
from PIL.Image import Resampling
from torchvision.ops import masks_to_boxes
from transformers import ViTImageProcessor

from hf_vit.sample_keys import SampleKey
from hf_vit.vision.annotations.checks import CheckedImages, check
from hf_vit.vision.annotations.load import load_annotated_images
from hf_vit.vision.coco_scores import average_precision, ground_truth
from hf_vit.vision.object_augmentation import ObjectAugmentationArguments
from hf_vit.vision.targets import ObjectViews, collate

SCENES = [[(7, (4, 6, 16, 16)), (3, (30, 10, 24, 8))], [(3, (2, 40, 60, 6))], []]


def _data(folder: Path, scenes: Any = SCENES) -> CheckedImages:
    save_images(folder / "images", scenes)
    (folder / "train.json").write_text(json.dumps(coco_content(scenes)), encoding="utf-8")
    return check(load_annotated_images(str(folder)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CheckedImages:
    return _data(tmp_path_factory.mktemp("scene"))


def _views(data: CheckedImages, size: tuple[int, int] = (48, 64), **augmentation: Any) -> ObjectViews:
    processor = ViTImageProcessor(size={"height": size[0], "width": size[1]}, resample=Resampling.NEAREST)
    chosen = ObjectAugmentationArguments(**augmentation) if augmentation else None
    options = {"has_masks": True, "augmentation": chosen, "multiple_of": 8}
    return ObjectViews(data.splits["train"], processor, **options)


def _corners(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Boxes (n, 4) of parts of the canvas, centre and size, as left, top, right and bottom in pixels."""
    x, y, w, h = (boxes * torch.tensor([size[1], size[0]] * 2)).unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)


def test_boxes_are_parts_of_the_canvas(data):
    labels = _views(data)[0]["labels"]
    expected = torch.tensor([[4, 6, 20, 22], [30, 10, 54, 18]], dtype=torch.float32)
    torch.testing.assert_close(_corners(labels["boxes"], (48, 64)), expected, atol=1e-4, rtol=0)
    assert labels["class_labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "augmentation",
    [
        {"horizontal_flip_prob": 1.0},
        {"horizontal_flip_prob": 0.0, "vertical_flip_prob": 1.0},
        {"horizontal_flip_prob": 0.5, "vertical_flip_prob": 0.5, "scale_jitter": [0.5, 2.0]},
        {"horizontal_flip_prob": 0.5, "canvas_scale": [0.5, 2.0]},
    ],
)
def test_boxes_masks_and_pixels_move_together(data, augmentation):
    """An object's mask shows the pixels of its colour, and its box is that of the mask."""
    views = _views(data, **augmentation)
    colours = torch.tensor([(220, 40, 40), (40, 60, 220)])
    seen = 0
    for epoch in range(20):
        item = views[SampleKey(epoch, 0, 0)]
        size = (item["pixel_values"].shape[1], item["pixel_values"].shape[2])
        labels = item["labels"]
        for label, box, mask in zip(labels["class_labels"], labels["boxes"], labels["masks"]):
            colour = colours[label][:, None, None]
            of_colour = ((item["pixel_values"] - colour).abs() < 30).all(0)
            assert (mask != of_colour).float().mean() < 0.03  # interpolated edges apart
            found = _corners(box[None], size)[0]
            around = masks_to_boxes(mask[None])[0] + torch.tensor([0.0, 0.0, 1.0, 1.0])
            assert (found - around).abs().max() <= 1.5
            seen += 1
    assert seen > 10


def test_masks_stay_with_their_objects_beside_a_crowd(tmp_path):
    """A crowd stands between two objects: no box, class or mask of it is left, and none is another's."""
    scene = [(3, (2, 40, 60, 6)), (7, (40, 4, 20, 20)), (7, (4, 6, 16, 10))]
    content = coco_content([scene])
    content["annotations"][1]["iscrowd"] = 1
    save_images(tmp_path / "images", [scene])
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    labels = _views(check(load_annotated_images(str(tmp_path))), horizontal_flip_prob=1.0)[0]["labels"]
    assert labels["class_labels"].tolist() == [1, 0]
    around = masks_to_boxes(labels["masks"]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(_corners(labels["boxes"], (48, 64)), around, atol=1e-4, rtol=0)


def test_a_flip_there_and_back_is_exact(data):
    plain = _views(data)[0]["labels"]["boxes"]
    flipped = _views(data, horizontal_flip_prob=1.0)[0]["labels"]["boxes"]
    back = torch.cat([1 - flipped[:, :1], flipped[:, 1:]], dim=1)
    torch.testing.assert_close(_corners(back, (48, 64)), _corners(plain, (48, 64)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("zoom", [0.5, 1.25])
def test_a_zoom_scales_both_sides_by_its_factor(data, zoom):
    """On a canvas that is no square, whose sides nothing may take for each other."""
    plain = _views(data)[SampleKey(0, 1, 0)]["labels"]["boxes"][0]
    views = _views(data, horizontal_flip_prob=0.0, scale_jitter=[zoom, zoom])
    boxes = torch.cat([views[SampleKey(epoch, 1, 0)]["labels"]["boxes"] for epoch in range(10)])
    # Where the crop cut a box, its side is shorter.
    torch.testing.assert_close(boxes[:, 2:].amax(0), (plain[2:] * zoom).clamp(max=1), rtol=0.05, atol=0.01)


def test_masks_may_be_averaged_over_squares_of_pixels(data):
    views = _views(data)
    whole = views[0]["labels"]["masks"]
    views.mask_stride = 4
    parts = views[0]["labels"]["masks"]
    expected = torch.stack([mask.float().unflatten(0, (12, 4)).unflatten(2, (16, 4)).mean((1, 3)) for mask in whole])
    torch.testing.assert_close(parts, expected)


def test_an_image_without_objects_is_a_sample_like_others(data):
    views = _views(data, horizontal_flip_prob=0.5, scale_jitter=[0.5, 2.0])
    batch = collate(views.__getitems__([SampleKey(0, 2, 0), SampleKey(0, 0, 0)]))
    assert batch["pixel_values"].shape == (2, 3, 48, 64)
    empty = batch["labels"][0]
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 48, 64)


def test_one_canvas_is_drawn_for_a_batch_and_its_sides_fit_the_patch(data):
    views = _views(data, canvas_scale=[0.5, 2.0])
    shapes = set()
    for epoch in range(12):
        batch = collate(views.__getitems__([SampleKey(epoch, index, 0) for index in range(3)]))
        shapes.add(tuple(batch["pixel_values"].shape[2:]))
    assert len(shapes) > 3
    assert all(height % 8 == 0 and width % 8 == 0 for height, width in shapes)


def test_views_depend_on_the_key_alone(data):
    views = _views(data, horizontal_flip_prob=0.5, scale_jitter=[0.5, 2.0], photometric_distort_prob=0.5)
    first = views[SampleKey(3, 0, 0)]
    torch.manual_seed(7)
    again = views.__getitems__([SampleKey(3, 1, 0), SampleKey(3, 0, 0)])[1]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["labels"]["boxes"], again["labels"]["boxes"])


@pytest.mark.parametrize("value", [[2.0, 1.0], [0.0, 1.0], [1.0]])
def test_zooms_must_rise(value):
    with pytest.raises(ValueError, match=r"--scale_jitter takes two rising numbers in \[0\.1, 4\]"):
        ObjectAugmentationArguments(scale_jitter=value)


def _random_scene(generator: np.random.Generator) -> list[tuple[int, tuple[int, int, int, int]]]:
    scene = []
    for _ in range(generator.integers(0, 5)):
        x, y = generator.integers(0, 40), generator.integers(0, 30)
        scene.append((int(generator.choice([7, 3])), (int(x), int(y), *generator.integers(4, 18, 2).tolist())))
    return scene


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_is_that_of_another_tool(kind, tmp_path):
    generator = np.random.default_rng(0)
    data = _data(tmp_path, [_random_scene(generator) for _ in range(30)])
    truth = ground_truth(data.splits["train"], data.class_names, has_masks=True)
    for each in truth["annotations"][::7]:
        each["iscrowd"] = 1
    predictions = []
    for each in truth["annotations"]:
        box = (np.asarray(each["bbox"]) + generator.normal(0, 1.5, 4)).clip(0.5, None).tolist()
        category = each["category_id"] if generator.random() < 0.8 else 1 - each["category_id"]
        one = {"image_id": each["image_id"], "category_id": category, "score": float(generator.random())}
        predictions.append({**one, **({"bbox": box} if kind == "bbox" else {"segmentation": each["segmentation"]})})
    found = average_precision(truth, predictions, kind)
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(predictions), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = hotcoco.COCO(str(tmp_path / "truth.json"))
        scored = hotcoco.COCOeval(reference, reference.load_res(str(tmp_path / "found.json")), kind)
        scored.run()
    expected = dict(zip(("ap", "ap50", "ap75"), scored.stats[:3]))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert 0 < found["ap"] < 1


def test_the_threshold_of_best_f1_is_the_best_of_all(tmp_path):
    generator = np.random.default_rng(1)
    data = _data(tmp_path, [[(7, (4, 6, 16, 16))]] * 20)
    truth = ground_truth(data.splits["train"], data.class_names, has_masks=False)
    rows = [
        (index, float(generator.random()), bool(generator.random() < 0.5)) for index in range(20) for _ in range(2)
    ]
    predictions = [
        {"image_id": i, "category_id": 0, "score": score, "bbox": [4, 6, 16, 16] if right else [40, 30, 8, 8]}
        for i, score, right in rows
    ]
    found = average_precision(truth, predictions)

    def f1(threshold: float) -> float:
        kept = [(i, right) for i, score, right in rows if score >= threshold]
        right = len({i for i, is_right in kept if is_right})  # a second box of one object is wrong
        return 2 * right / (20 + len(kept))

    assert found["best_f1"] == pytest.approx(max(f1(score) for _, score, _ in rows))
    assert f1(found["best_threshold"]) == pytest.approx(found["best_f1"])


def test_nothing_found_is_an_average_precision_of_zero(data):
    truth = ground_truth(data.splits["train"], data.class_names, has_masks=False)
    found = average_precision(truth, [])
    assert (found["ap"], found["ap50"]) == (0, 0)
    assert found["sizes"] == {"small": 3, "medium": 0, "large": 0}
