"""Whole runs of image segmentation: what they leave segments images anywhere; segments that are right score 1, and
masks are scored as COCO's own tool does."""

import json
from pathlib import Path
from types import SimpleNamespace

import annotated_folders
import numpy as np
import pytest
import torch
import training_runs
from PIL import Image

from hf_vit import score
from hf_vit.cards import check_card, write_card
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.tasks.image_segmentation.evaluation import SegmentationEvaluator, class_map
from hf_vit.tasks.image_segmentation.figures import painted
from hf_vit.tasks.image_segmentation.task import ImageSegmentation
from hf_vit.train import build_task, parse
from hf_vit.vision.targets import decode_masks

TINY = [
    "--recipe=scenes_panoptic",
    "--image_size=32",
    "--backbone_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
    "--config_overrides=d_model=16,decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=16,num_queries=8",
    "--max_train_samples=24",
    "--max_eval_samples=8",
    "--per_device_train_batch_size=4",
    "--dataloader_num_workers=0",
    "--card_num_samples=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    training_runs.finish(*TINY, "--num_train_epochs=1", "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def task() -> ImageSegmentation:
    return build_task(parse([*TINY, "--max_eval_samples=60", "--output_dir", "unused"]))


def test_the_folder_segments_without_the_package_and_its_card_shows_segments(run):
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert {"pq", "ap", "ap50", "ap75", "panoptic_classes", "per_class"} <= record["result"]["metrics"].keys()
    assert record["epochs"][-1]["train_terms"].keys() >= {"loss_ce", "loss_giou", "loss_mask", "loss_dice"}
    assert record["data"]["stuff"] == ["sky", "ground"]
    write_card(run)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert check_card(run) == []
    assert "pipeline_tag: image-segmentation" in card and "| PQ |" in card
    assert Image.open(run / "samples.png").size[0] > 300
    with fresh_process(run, "run", HF_HUB_OFFLINE="1") as process:
        found = process.run(
            "from transformers import pipeline\n"
            "options = {'model': 'run', 'trust_remote_code': True}\n"
            "segmenter = pipeline('image-segmentation', **options)\n"
            "one = segmenter('run/sample_0.png', threshold=0.0, subtask='panoptic')\n"
            "by_class = segmenter('run/sample_0.png', subtask='semantic')\n"
            "boxes = pipeline('object-detection', **options)('run/sample_0.png', threshold=0.0)\n"
            "result = [[[each['label'], each['mask'].size] for each in found] for found in (one, by_class)]\n"
            "result.append([each['label'] for each in boxes])"
        )
    names = {"circle", "square", "triangle", "sky", "ground"}
    for segments in found[:2]:
        assert segments and all(label in names and list(size) == [64, 64] for label, size in segments)
    assert found[2] and set(found[2]) <= names


def _perfect(
    task: ImageSegmentation, indices: list[int], *, without: int | None = None
) -> tuple[SimpleNamespace, dict]:
    """What a model would predict that sees each segment of some images of the test split, but for the class
    `without`, and their batch."""
    split = task.data.splits["test"]
    logits = torch.full((len(indices), 8, len(task.data.class_names)), -20.0)
    masks = torch.full((len(indices), 8, 64, 64), -20.0)
    for row, index in enumerate(indices):
        objects = split[index]["objects"]
        for query, mask in enumerate(decode_masks(objects["segmentation"], (64, 64))):
            if not objects["iscrowd"][query] and objects["category"][query] != without:
                logits[row, query, objects["category"][query]] = 20.0
                masks[row, query][mask.bool()] = 20.0
    keys = np.stack([np.zeros_like(indices), indices, np.zeros_like(indices)], axis=-1)
    outputs = SimpleNamespace(logits=logits, pred_masks=masks, loss=torch.tensor(0.5))
    return outputs, {"sample_key": torch.from_numpy(keys)}


def _scored(task: ImageSegmentation, without: int | None = None) -> tuple[SegmentationEvaluator, dict]:
    evaluator = task.evaluator("test", final=True)
    indices = list(range(len(task.data.splits["test"])))
    for half in (indices[:30], indices[30:]):
        outputs, batch = _perfect(task, half, without=without)
        evaluator.update(batch, evaluator.found(outputs, batch))
    return evaluator, evaluator.compute()


def test_right_segments_score_one_with_crowds_and_empty_images_among_them(task):
    objects = task.data.splits["test"]["objects"]
    assert any(any(each["iscrowd"]) for each in objects)
    assert any(all(category > 2 for category in each["category"]) for each in objects)
    evaluator, metrics = _scored(task)
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ap50", "ap75"):
        assert metrics[name] == pytest.approx(1), name
    lines = list(evaluator.predictions())
    assert len(lines) == 60 and all(each["label"] in ("circle", "square", "triangle") for each in lines[0]["objects"])


def test_a_class_that_is_missed_costs_its_share(task):
    _, metrics = _scored(task, without=1)
    assert metrics["pq"] == pytest.approx(4 / 5)
    assert metrics["pq_things"] == pytest.approx(2 / 3) and metrics["pq_stuff"] == pytest.approx(1)
    assert metrics["ap"] == pytest.approx(2 / 3)
    assert metrics["panoptic_classes"][1]["pq"] == 0


def test_score_writes_masks_that_cocos_own_tool_reads(run, tmp_path):
    arguments = ["--model_name_or_path", str(run), "--dataset_name", "scenes", "--split", "test"]
    found = score.main([*arguments, "--max_eval_samples=8", "--output_dir", str(tmp_path / "score")])
    results = json.loads((tmp_path / "score/coco_results.json").read_text(encoding="utf-8"))
    assert all(set(each["segmentation"]) == {"size", "counts"} and each["category_id"] <= 2 for each in results)
    assert {"pq", "ap"} <= found["result"]["metrics"].keys()


def test_scenes_give_each_pixel_to_one_segment(task):
    for objects in task.data.checked.splits["validation"]["objects"][:20]:
        total = decode_masks(objects["segmentation"], (64, 64)).sum(0)
        assert int(total.max()) == 1 and float((total == 1).float().mean()) > 0.98


def test_data_without_masks_is_refused():
    with pytest.raises(ValueError, match=r"--dataset_name 'shapes' has boxes alone \(drawn\)"):
        build_task(parse([*TINY, "--dataset_name=shapes", "--output_dir", "unused"]))


def test_the_precision_of_things_cannot_choose_among_stuff(tmp_path):
    path = annotated_folders.write_panoptic(tmp_path) / "annotations/panoptic_train.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"isthing": 1', '"isthing": 0'), encoding="utf-8")
    arguments = [*TINY, "--dataset_name", str(tmp_path), "--metric_for_best_model=ap50", "--output_dir", "unused"]
    with pytest.raises(ValueError, match=r"--metric_for_best_model ap50 is that of things, and all classes .* stuff"):
        build_task(parse(arguments))


def test_a_map_of_classes_is_bordered_and_painted():
    ids = np.array([[1, 1, 2], [1, 1, 2], [7, 7, 7]])
    expected = [[1, 1, 255], [1, 1, 255], [255, 255, 255]]
    classes = class_map(ids, {1: 0, 2: 4})
    np.testing.assert_array_equal(classes, expected)
    photograph = np.full((3, 3, 3), 100, dtype=np.uint8)
    drawn = painted(photograph, np.where(classes == 255, 0, classes))
    assert (drawn[2] == 100).all() and (drawn[0, 0] != 100).any()
