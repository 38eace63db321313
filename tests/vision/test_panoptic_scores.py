"""Panoptic quality is what another tool computes by COCO's rules, crowds and unlabelled pixels included."""

from __future__ import annotations

import contextlib
import io
import json

import hotcoco
import numpy as np
import pytest
from hotcoco import panoptic

from hf_vit.vision.annotations.rows import encode_mask
from hf_vit.vision.panoptic_scores import PanopticScores

NAMES, IS_THING = ["disc", "box", "sky", "ground"], [True, True, False, False]
SIDE = 40


def _segments(generator: np.random.Generator, *, crowd: bool) -> list[tuple[int, np.ndarray, bool]]:
    """Category, mask and crowd of segments that do not overlap, with some pixels that belong to none."""
    owner = np.zeros((SIDE, SIDE), dtype=int)
    horizon = int(generator.integers(10, 30))
    owner[:horizon], owner[horizon:] = 1, 2
    kinds = {1: (2, False), 2: (3, False)}
    for number in range(3, 3 + int(generator.integers(0, 7))):
        x, y = generator.integers(0, SIDE - 8, 2)
        w, h = generator.integers(4, 14, 2)
        owner[y : y + h, x : x + w] = number
        kinds[number] = (int(generator.integers(2)), crowd and bool(generator.random() < 0.3))
    owner[: int(generator.integers(0, 6))] = 0
    for kind in (0, 1):  # COCO has one crowd of a class in an image
        first, *others = [number for number, each in kinds.items() if each == (kind, True)] or [0]
        owner[np.isin(owner, others)] = first
    return [(kind, owner == n, is_crowd) for n, (kind, is_crowd) in kinds.items() if (owner == n).any()]


def _disturbed(segments, generator) -> list[tuple[int, np.ndarray]]:
    found = []
    claimed = np.zeros((SIDE, SIDE), dtype=bool)
    for kind, mask, _ in segments:
        if generator.random() < 0.15:
            continue
        moved = np.roll(mask, generator.integers(-2, 3, 2), (0, 1)) & ~claimed
        claimed |= moved
        if moved.any():
            found.append((kind if generator.random() < 0.8 else int(generator.integers(4)), moved))
    return found


def _expected(images, tmp_path) -> dict:
    truth = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": i, "name": n, "isthing": int(t)} for i, (n, t) in enumerate(zip(NAMES, IS_THING))]
    predictions = []
    for index, (segments, found) in enumerate(images):
        truth["images"].append({"id": index, "height": SIDE, "width": SIDE, "file_name": f"{index}.png"})
        for kind, mask, crowd in segments:
            number = len(truth["annotations"]) + 1
            one = {"id": number, "image_id": index, "category_id": kind, "iscrowd": int(crowd), **_mask(mask)}
            truth["annotations"].append(one)
        for kind, mask in found:
            predictions.append({"image_id": index, "category_id": kind, "score": 1.0, **_mask(mask)})
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(predictions), encoding="utf-8")
    reference = hotcoco.COCO(str(tmp_path / "truth.json"))
    scored = panoptic.PanopticEval(reference, reference.load_res(str(tmp_path / "found.json")))
    with contextlib.redirect_stdout(io.StringIO()):
        scored.run()
    return scored.results()


def _mask(mask: np.ndarray) -> dict:
    encoded = encode_mask(mask)
    area, rows, columns = int(mask.sum()), *np.nonzero(mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return {
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
        "area": area,
        "bbox": box,
    }


@pytest.mark.parametrize("crowd", [False, True])
def test_panoptic_quality_is_that_of_another_tool(crowd, tmp_path):
    generator = np.random.default_rng(3)
    images = []
    for _ in range(25):
        segments = _segments(generator, crowd=crowd)
        images.append((segments, _disturbed(segments, generator)))
    scores = PanopticScores(NAMES, IS_THING)
    for segments, found in images:
        segmentation = np.zeros((SIDE, SIDE), dtype=int)
        described = []
        for number, (kind, mask) in enumerate(found, start=1):
            segmentation[mask] = number
            described.append({"id": number, "label_id": kind})
        # Two segments of one class of stuff are one segment: the tool is given them so.
        masks = np.stack([mask for _, mask, _ in segments])
        scores.update(segmentation, described, masks, [k for k, _, _ in segments], [c for _, _, c in segments])
    merged = [(segments, _merged(found)) for segments, found in images]
    expected = _expected(merged, tmp_path)
    metrics = scores.compute()
    for ours, theirs in {"": "All", "_things": "Things", "_stuff": "Stuff"}.items():
        for name in ("pq", "sq", "rq"):
            assert metrics[f"{name}{ours}"] == pytest.approx(expected[theirs][name], abs=1e-9), (name, theirs)
    assert 0.2 < metrics["pq"] < 0.95


def _merged(found):
    stuff = {}
    things = []
    for kind, mask in found:
        if IS_THING[kind]:
            things.append((kind, mask))
        else:
            stuff[kind] = stuff.get(kind, np.zeros_like(mask)) | mask
    return [*things, *stuff.items()]


def test_what_nobody_claims_is_missed():
    """An empty answer finds nothing: it has no quality, where a tool that leaves unclaimed pixels out would see none
    missed."""
    scores = PanopticScores(["disc"], [True])
    scores.update(np.zeros((4, 4), dtype=int), [], np.ones((1, 4, 4)), [0], [False])
    metrics = scores.compute()
    assert metrics["pq"] == 0
    assert metrics["panoptic_classes"][0]["support"] == 1
