"""Whole runs of object detection: what they leave finds objects anywhere, and is scored as COCO's own tool does."""

import contextlib
import io
import json
from pathlib import Path

import annotated_folders
import pytest
import torch
import training_runs
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from hf_vit import score
from hf_vit.cards import check_card, write_card
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.tasks.object_detection.data import load_annotated_split, load_annotated_splits
from hf_vit.tasks.object_detection.task import ObjectDetection
from hf_vit.train import build_task, parse

TINY = [
    "--recipe=shapes_detection",
    "--image_size=32",
    "--backbone_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
    "--config_overrides=d_model=16,decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=16,num_queries=8",
    "--max_train_samples=24",
    "--max_eval_samples=8",
    "--per_device_train_batch_size=4",
    "--dataloader_num_workers=0",
    "--card_num_samples=2",
    "--lr_scheduler_type=constant",  # which does not ask for the number of steps
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detection") / "run"
    training_runs.finish(*TINY, "--num_train_epochs=2", "--output_dir", folder)
    return folder


def test_a_run_leaves_records_of_what_it_found(run):
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metrics = record["result"]["metrics"]
    assert {"ap", "ap50", "ap75", "per_class", "sizes"} <= metrics.keys()
    assert [row["label"] for row in metrics["per_class"]] == ["circle", "square", "triangle"]
    assert record["epochs"][-1]["train_terms"].keys() >= {"loss_ce", "loss_bbox", "loss_giou"}
    assert record["data"]["checks"]["train"]["empty"] > 0
    assert len(record["result"]["samples"]) == 2


def test_the_folder_finds_objects_without_the_package_and_its_card_says_how(run):
    write_card(run)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert check_card(run) == []
    assert "pipeline_tag: object-detection" in card and "which prints" in card
    assert "| AP (IoU 0.50 to 0.95) |" in card
    for name in ("samples.png", "curves.png"):
        assert Image.open(run / name).size[0] > 300
    with fresh_process(run, "run", HF_HUB_OFFLINE="1") as process:
        found = process.run(
            "from transformers import pipeline\n"
            "detector = pipeline('object-detection', model='run', trust_remote_code=True)\n"
            "one = detector('run/sample_0.png', threshold=0.0)\n"
            "many = detector(['run/sample_0.png', 'run/sample_1.png'], threshold=0.0, batch_size=2)\n"
            "result = [one, many[0]]"
        )
    assert found[0] and {each["label"] for each in found[0]} <= {"circle", "square", "triangle"}
    assert [each["label"] for each in found[0]] == [each["label"] for each in found[1]]


def test_resuming_gives_the_same_bits(run, tmp_path):
    folder = tmp_path / "again"
    training_runs.finish(*TINY, "--num_train_epochs=2", "--max_train_steps=8", "--output_dir", folder)
    training_runs.finish(*TINY, "--num_train_epochs=2", "--output_dir", folder, "--resume_from_checkpoint")
    expected, found = (load_file(each / "model.safetensors") for each in (run, folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]


def test_score_writes_results_that_cocos_own_tool_reads(run, tmp_path):
    folder = annotated_folders.write_roboflow(tmp_path / "data")
    for path in folder.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for category, name in zip(content["categories"], ("circle", "triangle")):
            category["name"] = name
        path.write_text(json.dumps(content), encoding="utf-8")
    arguments = ["--model_name_or_path", str(run), "--dataset_name", str(folder), "--split", "validation"]
    result = score.main([*arguments, "--output_dir", str(tmp_path / "score"), "--predictions"])
    truth = COCO(str(folder / "valid/_annotations.coco.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        tool = COCOeval(truth, truth.loadRes(str(tmp_path / "score/coco_results.json")), "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    assert result["result"]["metrics"]["ap"] == pytest.approx(tool.stats[0], abs=1e-9)
    lines = (tmp_path / "score/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["0.png", "1.png", "2.png"]


def _task(*arguments: str) -> ObjectDetection:
    return build_task(parse([*TINY, *arguments, "--output_dir", "unused"]))


def test_data_of_other_categories_than_the_models_is_refused(tmp_path):
    data = _task().arguments.data
    with pytest.raises(ValueError, match="categories that the model does not know: square, triangle"):
        load_annotated_split(data, "test", ["circle"])


def test_classes_are_matched_to_the_models_by_name():
    data = _task().arguments.data
    names = ["triangle", "circle", "square"]
    renamed = load_annotated_split(data, "test", names)
    plain = load_annotated_splits(data, seed=0)
    for row, other in zip(renamed.checked.splits["test"]["objects"], plain.checked.splits["test"]["objects"]):
        found = [names[index] for index in row["category"]]
        assert found == [plain.class_names[index] for index in other["category"]]


def test_the_plan_says_what_the_annotations_hold_and_which_images_lose_objects():
    rows = _task("--config_overrides=num_queries=2").plan_rows()
    assert rows["canvas"] == "32 x 32 pixels, stretched"
    assert "objects in 1,500 images" in " ".join(rows.values())
    assert rows["queries"].startswith("2, fewer than the objects of")


def test_a_canvas_must_fit_the_patch():
    with pytest.raises(
        ValueError, match=r"--image_size must be multiples of the patch \(8 pixels\), found \[36, 36\]"
    ):
        _task("--image_size=36")


def test_the_backbone_learns_at_its_own_rate():
    task = _task("--backbone_learning_rate_factor=0.1")
    groups = task.parameter_groups(task.arguments.optimization, 1.0)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    backbone = {id(parameter) for parameter in task.model.model.backbone.parameters()}
    assert {rates[key] for key in backbone} == {0.1}
    assert {rates[key] for key in rates.keys() - backbone} == {1.0}
    assert len(rates) == sum(parameter.requires_grad for parameter in task.model.parameters())
