"""Runs on folders as people have them: what is told before, what is learnt, and what is left beside the model."""

import json

import numpy as np
import pytest
import training_runs
from card_records import run_records, text_of
from classifiers import save
from PIL import Image

from hf_vit import score, train
from hf_vit.cards import format, write_card
from hf_vit.hub.doctor import published_files
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.tasks.image_classification.evaluation import ClassificationEvaluator
from hf_vit.train import build_task, parse
from hf_vit.vision.processors import InputFormat

TINY = [
    "--recipe=images",
    "--image_size=8",
    "--max_train_steps=40",
    "--warmup_ratio=0",
    "--per_device_train_batch_size=8",
    "--dataloader_num_workers=0",
    "--mixed_precision=no",
    "--train_crop=resize",
    "--auto_augment=none",
    "--random_erasing_prob=0",
    "--mixup_alpha=0",
    "--ema_decay=0.5",
]
SMALL = (
    "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,patch_embedding=conv,patch_size=4"
)


def photo(path, level, *, deep=False, seed=0):
    """A picture whose lower half is as bright as `level` says, in 8 or 16 bits, grey or in colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 40, (12, 10))
    noise[6:] += level
    if deep:
        Image.fromarray((noise * 257).astype(np.uint16)).save(path)
    else:
        Image.fromarray(np.repeat(noise[..., None], 3, axis=2).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """Two classes of 20 photos, told apart by their brightness: badly named, nested, broken, of 8 and of 16 bits."""
    folder = tmp_path_factory.mktemp("photos") / "stations"
    for number in range(20):
        name = f"{('test', 'train', 'dev')[number % 3]}_{number}.png"
        photo(folder / "steam train" / str(2000 + number % 2) / name, 30, deep=number % 4 == 0, seed=number)
        photo(folder / "<i>test" / name, 200, deep=number % 4 == 1, seed=100 + number)
    (folder / "steam train" / "broken.jpg").write_bytes(b"no image")
    (folder / "steam train" / "notes.txt").write_text("x")
    (folder / "_old").mkdir()
    photo(folder / "_old" / "a.png", 0)
    (folder / "empty").mkdir()
    return folder


def flags(messy, output, *more):
    return [*TINY, f"--config_overrides={SMALL}", "--train_dir", str(messy), "--output_dir", str(output), *more]


def test_the_plan_tells_classes_files_images_and_licence_before_anything_is_written(messy, tmp_path, capsys):
    train.main(flags(messy, tmp_path / "run", "--dry_run", "--card_license=cc0-1.0"))
    told = capsys.readouterr().out
    for words in (
        "stations: train 36, validation 4 images",
        "<i>test 18, steam train 18",
        "_old/a.png",
        "empty/",
        "steam train/notes.txt",
        "cannot be decoded: train 1",
        "mean 0.485, 0.456, 0.406 (the recipe's)",
        "horizontal flip 0.5",
        "licence: cc0-1.0",
    ):
        assert words in told, told
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(messy, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "stations"
    training_runs.finish(*flags(messy, output, "--card_num_samples=4"))
    return output, json.loads((output / "run.json").read_text())


def test_a_folder_of_badly_named_nested_broken_and_deep_photos_is_learnt(messy, finished):
    output, record = finished
    data, on_disk = record["data"], sum(path.is_file() for path in messy.rglob("*"))
    used = sum(split["num_examples"] for split in data["splits"].values())
    counts = data["unused_files"]["train"]
    files = {name: count for name, count in counts.items() if name != "folder without an image, no class"}
    assert used + sum(files.values()) + sum(data["bad_samples"].values()) == on_disk
    assert counts["folder without an image, no class"] == 1 and data["has_deep_samples"]
    assert data["class_names"] == ["<i>test", "steam train"] and data["name"] == "stations"
    assert record["result"]["metrics"]["accuracy"] == 1.0  # of photos of both depths
    text = text_of(output, record)
    assert "1 image of the train split was left out, as it cannot be decoded" in text
    for reason, count in counts.items():
        what, were = ("files or folders", "were") if count > 1 else ("file or folder", "was")
        assert f"- {count} {what} of the train split {were} not used: {format.name(reason)}" in text
    assert "A pipeline clips samples of 16 bits" in text and "license" not in text.partition("\n---\n")[0]


def test_what_was_predicted_of_each_file_lies_beside_the_records_and_is_not_published(finished):
    output, record = finished
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == record["result"]["num_examples"] == 4
    assert all(row["label"] in row["file"] and row["prediction"] == row["label"] for row in rows)
    assert "predictions.jsonl" not in published_files(output) and "run.json" in published_files(output)


def test_a_folder_is_scored_as_it_is(messy, finished, tmp_path):
    model = ["--model_name_or_path", str(finished[0]), "--output_dir", str(tmp_path / "score"), "--trust_remote_code"]
    record = score.main([*model, "--test_dir", str(messy), "--on_bad_sample=skip", "--predictions"])
    assert record["result"]["split"] == "test" and record["result"]["num_examples"] == 40
    assert record["result"]["metrics"]["accuracy"] == 1.0 and record["data"]["name"] == "stations"


def test_a_grey_model_is_trained_and_answers_alike_where_the_package_is_missing(messy, tmp_path, recwarn):
    few = [f"--config_overrides={SMALL},num_channels=1", "--card_num_samples=0"]
    training_runs.finish(*flags(messy, tmp_path / "run", *few))
    write_card(tmp_path / "run")
    assert not [str(each.message) for each in recwarn if "snippets" in str(each.message)]  # there are no pictures
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'Image.open("image.png")' in card and "which prints" not in card and "### Samples" not in card
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    kept = [row for row in rows if Image.open(row["file"]).mode == "RGB"]  # a pipeline clips the others
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_channels"] == 1 and kept
    code = (
        "from transformers import pipeline\n"
        "classifier = pipeline('image-classification', model=folder, trust_remote_code=True)\n"
        "result = [classifier(file)[0]['label'] for file in files]"
    )
    with fresh_process() as process:
        found = process.run(code, folder=str(tmp_path / "run"), files=[row["file"] for row in kept])
    assert found == [row["prediction"] for row in kept]


def test_other_channels_are_refused_before_training(messy, tmp_path):
    with pytest.raises(ValueError, match="num_channels must be 3, of colour images, or 1, of grey ones, found 13"):
        build_task(parse(flags(messy, tmp_path / "run", f"--config_overrides={SMALL},num_channels=13")))


def test_a_checkpoint_keeps_its_own_normalisation_unless_another_is_typed(messy, tmp_path):
    path, _ = save(tmp_path / "model")  # mean 0.2, deviation 0.3
    base = ["--recipe=images", "--train_dir", str(messy), "--model_name_or_path", path, "--dry_run"]
    task = build_task(parse(base))
    form = InputFormat.of(task.processor)
    assert form.mean == [0.2] * 3 and form.std == [0.3] * 3 and form.resample == Image.Resampling.BILINEAR
    assert f"24 x 24 pixels (that of {path})" in task.plan_rows()["images"]
    assert f"mean 0.2, 0.2, 0.2 (that of {path})" in task.plan_rows()["images"]
    task = build_task(parse([*base, "--image_mean=0.1", "--interpolation=bicubic"]))
    form = InputFormat.of(task.processor)
    assert form.mean == [0.1] * 3 and form.std == [0.3] * 3 and form.resample == Image.Resampling.BICUBIC
    assert "mean 0.1, 0.1, 0.1 (--image_mean)" in task.plan_rows()["images"]


def test_a_checkpoint_without_a_processor_says_which_flags_stand_in(messy, tmp_path):
    path, _ = save(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    base = ["--recipe=images_finetune", "--train_dir", str(messy), "--model_name_or_path", path]
    with pytest.raises(ValueError, match="has no image processor: give --image_mean and --image_std"):
        build_task(parse(base))
    task = build_task(parse([*base, "--image_mean=0.2", "--image_std=0.3"]))
    assert InputFormat.of(task.processor)[:3] == ((24, 24), [0.2] * 3, [0.3] * 3)


def test_the_kept_epoch_and_a_changed_schedule_are_told_and_recorded(messy, tmp_path):
    short = [flag for flag in flags(messy, tmp_path / "run") if "max_train_steps" not in flag]
    short += ["--max_train_steps=none", "--load_best_model_at_end"]
    terminal = {"LOG": str(tmp_path / "log")}
    training_runs.finish(*short, "--num_train_epochs=3", environment=terminal)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    accuracies = [row["metrics"]["accuracy"] for row in record["epochs"]]
    assert record["result"]["kept_epoch"] == 1 + accuracies.index(max(accuracies))
    assert (
        f"The weights are those of epoch {record['result']['kept_epoch']} of 3, the best on the validation"
        in text_of(tmp_path / "run", record)
    )
    kept = f"keeping the weights of epoch {record['result']['kept_epoch']} of 3, the best on validation"
    assert kept in (tmp_path / "log").read_text()
    training_runs.finish(*short, "--num_train_epochs=4", "--resume_from_checkpoint=latest", environment=terminal)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    change = {"step": record["epochs"][2]["step"], "name": "num_train_epochs", "before": "3", "after": "4"}
    assert record["schedule_changes"] == [change]
    told = f"another schedule: num_train_epochs 4, until step {change['step']:,} 3"
    assert told in (tmp_path / "log").read_text()
    assert "the run went on with another schedule: `num_train_epochs` `4`, until then `3`" in text_of(
        tmp_path / "run", record
    )


class _Rows:
    """A split of `labels`, as an evaluator reads it."""

    def __init__(self, labels):
        self.labels = labels

    def with_format(self, kind):
        return {"label": np.array(self.labels)}


@pytest.mark.parametrize(
    ("labels", "accuracy", "warns"), [([0, 0, 0, 1], 0.75, True), ([0, 0, 0, 1], 0.8, False), ([0], 1.0, False)]
)
def test_an_accuracy_no_better_than_chance_is_warned_of(labels, accuracy, warns):
    evaluator = ClassificationEvaluator(_Rows(labels), ["ant", "bee"], None, final=False)
    warning = evaluator.warning({"accuracy": accuracy})
    assert (warning is not None) == warns and (not warns or "no better than chance, 75.00%" in warning)


def test_the_worst_mistakes_are_shown_the_surest_first(tmp_path):
    images = [{"image": {"path": str(tmp_path / f"{number}.png"), "bytes": None}} for number in range(6)]
    for number in range(6):
        photo(tmp_path / f"{number}.png", 10 * number)
    evaluator = ClassificationEvaluator(images, ["ant", "bee"], None, final=True, num_samples=4)
    # index, label, prediction and confidence
    rows = [(0, 0, 0, 0.9), (1, 0, 1, 0.6), (2, 1, 0, 0.99), (3, 1, 1, 0.8), (4, 1, 0, 0.7), (5, 0, 0, 0.5)]
    evaluator.state["rows"] = [np.array(rows)]
    samples = evaluator.save_samples(tmp_path)
    assert [sample["score"] for sample in samples] == [0.9, 0.5, 0.99, 0.7]
    assert [sample.get("is_worst", False) for sample in samples] == [False, False, True, True]
    record = run_records(["ant", "bee"])
    record["result"]["samples"] = samples
    assert "the mistakes are those that it was surest of" in text_of(tmp_path, record)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--test_dirs=x", "did you mean 'test_dir'?"),
        ("--zzz=1", "--help lists what there is"),
    ],
)
def test_unknown_arguments_are_answered_with_what_there_is(flag, words, capsys):
    with pytest.raises(SystemExit):
        parse(["--recipe=images", "--train_dir=x", flag])
    told = capsys.readouterr().err
    assert words in told and len(told) < 250
