"""Images read as a stream: complete epochs, dealt out to workers and processes, resumed to the bit."""

import io
import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import training_runs
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_vit import train
from hf_vit.tasks.image_classification.data import DataArguments
from hf_vit.tasks.image_classification.streaming import ImageStream, load_streamed_images
from hf_vit.train import build_task, parse

NAMES = ["ant", "bee", "cow"]
NUM_SAMPLES, NUM_SHARDS = 48, 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(count, first=0):
    """Images whose every pixel is their own number."""
    images = [PILImage.fromarray(np.full((8, 8, 3), first + i, np.uint8)) for i in range(count)]
    return {"image": images, "label": [i % 3 for i in range(count)]}


@pytest.fixture
def shards(tmp_path):
    features = datasets.Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        size = NUM_SAMPLES // NUM_SHARDS
        table = Dataset.from_dict(rows(size, shard * size), features)
        table.to_parquet(folder / f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet")
    Dataset.from_dict(rows(6, 100), features).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def arguments_of(source, **more):
    return DataArguments(**{"dataset_name": source, "streaming": True, "train_samples_per_epoch": NUM_SAMPLES, **more})


def pixel_counts(source, num_workers=0, epoch=0, batches_per_step=1, first_batch=0):
    """How often each image came in an epoch, and the batches."""
    images = load_streamed_images(arguments_of(source))
    stream = ImageStream(
        images.stream,
        images.class_index,
        lambda images, keys: images,
        samples_per_epoch=images.samples_per_epoch,
        batch_size=4,
        batches_per_step=batches_per_step,
        buffer_size=10,
        seed=0,
    )
    stream.set_epoch(epoch)
    stream.first_batch = first_batch
    batches = list(DataLoader(stream, batch_size=4, num_workers=num_workers))
    assert len(batches) == stream.num_batches
    shown = [batch["pixel_values"][:, 0, 0, 0].tolist() for batch in batches[first_batch:]]
    return Counter(number for batch in shown for number in batch), shown


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_shows_each_sample_once_and_another_one_in_another_order(shards, num_workers):
    counts, first = pixel_counts(shards, num_workers)
    assert counts == Counter(range(NUM_SAMPLES))
    assert pixel_counts(shards, num_workers)[1] == first
    counts, second = pixel_counts(shards, num_workers, epoch=1)
    assert counts == Counter(range(NUM_SAMPLES)) and second != first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_batches_leave_the_others_as_they_were(shards, num_workers):
    _, whole = pixel_counts(shards, num_workers)
    assert pixel_counts(shards, num_workers, first_batch=5)[1] == whole[5:]


def test_an_epoch_is_padded_to_whole_steps(shards):
    counts, batches = pixel_counts(shards, batches_per_step=5)  # 12 batches make 3 steps of 5
    assert len(batches) == 15 and set(counts) == set(range(NUM_SAMPLES))


def test_labels_and_splits_are_found_as_in_a_table(shards):
    images = load_streamed_images(arguments_of(shards))
    assert images.class_names == NAMES and images.labels("test").tolist() == [0, 1, 2, 0, 1, 2]
    described = images.describe()["splits"]
    assert described["train"]["num_examples"] == NUM_SAMPLES and described["train"]["num_shards"] == NUM_SHARDS
    row = next(iter(images.stream))
    assert images.class_index(row["label"]) == row["label"]


def test_a_webdataset_with_given_class_names(tmp_path):
    for split, count in (("train", 9), ("test", 3)):
        with tarfile.open(tmp_path / f"{split}-000.tar", "w") as archive:
            for i, (image, label) in enumerate(zip(*rows(count).values())):
                picture = io.BytesIO()
                image.save(picture, "PNG")
                for name, content in ((f"{i:03d}.png", picture.getvalue()), (f"{i:03d}.cls", str(label).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    options = {"label_column_name": "cls", "train_samples_per_epoch": 9}
    with pytest.raises(ValueError, match="--class_names"):
        load_streamed_images(arguments_of(str(tmp_path), **options))
    images = load_streamed_images(arguments_of(str(tmp_path), class_names=NAMES, **options))
    assert images.class_names == NAMES and images.labels("test").tolist() == [0, 1, 2]
    assert [images.class_index(row["label"]) for row in images.stream] == [i % 3 for i in range(9)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_samples_per_epoch=none"], "--train_samples_per_epoch"),
        (["--max_train_samples=5"], "--max_train_samples"),
        (["--on_bad_sample=skip"], "--on_bad_sample skip"),
        (["--repeated_augmentation=3"], "--repeated_augmentation"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(shards, capsys, flags, words):
    base = ["--dataset_name", shards, "--streaming", "--train_samples_per_epoch=48"]
    with pytest.raises((ValueError, SystemExit)) as refusal:
        task = build_task(parse([*base, *flags]))
        task.train_loader(1)
    assert words in str(refusal.value) + capsys.readouterr().err


@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_run_goes_on_where_it_was(shards, tmp_path, num_processes):
    arguments = ["--dataset_name", shards, "--streaming", "--train_samples_per_epoch=48", "--num_train_epochs=2"]
    arguments += [flag for flag in training_runs.TINY if "samples" not in flag and "epochs" not in flag]
    arguments += ["--per_device_train_batch_size=4", "--mixup_alpha=0.8", "--max_eval_samples=none"]
    schedule = ["--lr_scheduler_type=constant", "--warmup_ratio=0", "--card_num_samples=0"]
    run = [*arguments, *schedule, "--output_dir"]
    training_runs.finish(*run, tmp_path / "whole", num_processes=num_processes)
    training_runs.finish(*run, tmp_path / "cut", "--max_train_steps=8", num_processes=num_processes)
    if num_processes == 1:
        other = [*run, str(tmp_path / "cut"), "--resume_from_checkpoint=latest", "--dataloader_num_workers=2"]
        with pytest.raises(ValueError, match="another position: dataloader_num_workers 0, here 2"):
            train.main(other)
    training_runs.finish(*run, tmp_path / "cut", "--resume_from_checkpoint", num_processes=num_processes)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert [row["step"] for row in record["epochs"]] == [12 // num_processes, 24 // num_processes]


def test_a_folder_of_images_is_streamed_and_every_file_told(tmp_path):
    for number in range(6):
        path = tmp_path / "photos" / NAMES[number % 2] / f"test_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8)).save(path)
    (path.parent / "notes.txt").write_text("x")
    flags = ["--recipe=images", "--streaming", f"--train_dir={path.parents[1]}", f"--validation_dir={path.parents[1]}"]
    arguments = parse(flags)  # the recipe skips broken images, which a stream cannot
    images = load_streamed_images(arguments.data)
    assert images.samples_per_epoch == 6 and len(images.splits["validation"]) == 6
    unused = {"no image that Pillow decodes": 1}
    assert images.describe()["unused_files"] == {"train": unused, "validation": unused}
