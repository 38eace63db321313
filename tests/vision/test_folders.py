"""Folders of images as people have them: every file is used or named, and names of files decide no splits."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from torchvision.datasets import ImageFolder

from hf_vit.sources import own_name
from hf_vit.tasks.image_classification.arguments import DataArguments, ScoredDataArguments
from hf_vit.tasks.image_classification.data import load_labelled_images, load_labelled_split
from hf_vit.vision.folders import read_image_folders


def picture(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


def on_disk(folder):
    """Every file below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def named(found):
    return {name for names in found.unused.values() for name in names}


def load(train_val_split=0.1, **folders):
    arguments = DataArguments(**{name: str(path) for name, path in folders.items()}, train_val_split=train_val_split)
    return load_labelled_images(arguments, seed=0)


CLASSES = ["bullet train", "bus", "dev board", "pregnancy test", "steam train"]


def test_names_of_splits_in_names_of_classes_and_files_are_names_only(tmp_path):
    for name in CLASSES:
        for number in range(10):
            kind = ("test", "train", "validation", "img")[number % 4]
            picture(tmp_path / name / f"{kind}_{number:03d}.jpg")
    data = load(train_dir=tmp_path)
    assert data.class_names == CLASSES
    counts = {name: split["class_counts"] for name, split in data.describe()["splits"].items()}
    assert counts == {"train": [9] * 5, "validation": [1] * 5}
    folder = ImageFolder(tmp_path)
    assert folder.classes == CLASSES and len(folder) == sum(map(sum, counts.values()))


def test_every_file_is_used_or_named_and_the_top_folder_is_the_class(tmp_path):
    for name in ("pants/2021/a.png", "pants/2022/b.png", "shoes/2022/deep/er/c.jpg", "shoes/d.jpeg"):
        picture(tmp_path / name)
    for name in ("_old/e.png", ".cache/f.png", "shoes/.hidden.png", "shoes/_x/g.png", "loose.png"):
        picture(tmp_path / name)
    for name in ("shoes/notes.txt", "labels.csv", "pants/clip.mp4", "texts/readme.md", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty" / "er").mkdir(parents=True)
    found = read_image_folders(str(tmp_path))["train"]
    used = {os.path.relpath(file, tmp_path): name for file, name in zip(found.files, found.classes)}
    assert used == {
        "pants/2021/a.png": "pants",
        "pants/2022/b.png": "pants",
        "shoes/2022/deep/er/c.jpg": "shoes",
        "shoes/d.jpeg": "shoes",
    }
    files = {name for name in named(found) if not name.endswith(os.sep)}
    assert files | set(used) == on_disk(tmp_path) and not files & set(used)
    assert {name for name in named(found) if name.endswith(os.sep)} == {"empty/", "texts/"}
    (tmp_path / "valid").mkdir()  # one more class without images, and no folder of splits
    data = load(train_dir=tmp_path, validation_dir=tmp_path)
    assert data.class_names == ["pants", "shoes"]
    counts = data.describe()["unused_files"]["train"]
    assert sum(counts.values()) == len(named(found)) + 1


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_folders_named_exactly_as_splits_are_splits(tmp_path, validation):
    for split, count in (("train", 6), (validation, 2), ("test", 3)):
        for number in range(count):
            picture(tmp_path / split / ("ant", "bee")[number % 2] / f"{number}.png")
    (tmp_path / "about.txt").write_text("x")
    for arguments in ({"train_dir": tmp_path}, {"dataset_name": tmp_path}):
        data = load(**arguments)
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "validation": 2, "test": 3}
        assert data.describe()["unused_files"] == {"train": {"outside the folders of classes": 1}}
    picture(tmp_path / "other" / "x.png")
    found = read_image_folders(str(tmp_path))
    assert set(found) == {"train"} and set(found["train"].classes) == {"train", validation, "test", "other"}


def test_folders_for_validation_and_test_hold_their_split_alone_or_beside_others(tmp_path):
    for folder in ("a", "b", "c/train", "c/test"):
        for number in range(4):
            picture(tmp_path / folder / ("ant", "bee")[number % 2] / f"train_{number}.png")
    data = load(train_dir=tmp_path / "a", validation_dir=tmp_path / "b", test_dir=tmp_path / "c")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "validation": 4, "test": 4}
    assert all("c/test" in row["image"]["path"] for row in data.splits["test"])
    with pytest.raises(ValueError, match=r"--validation_dir .* holds the splits .*train.* none for validation"):
        load(train_dir=tmp_path / "a", validation_dir=tmp_path / "c")
    with pytest.raises(ValueError, match="--test_dir goes with --train_dir"):
        DataArguments(dataset_name="x", test_dir="y")


@pytest.mark.parametrize("argument", ["train_dir", "test_dir", "dataset_name"])
def test_a_folder_without_splits_is_the_split_that_is_scored(tmp_path, argument):
    for number in range(4):
        picture(tmp_path / "shots" / ("ant", "bee")[number % 2] / f"train_{number}.png")
    arguments = ScoredDataArguments(**{argument: str(tmp_path / "shots")})
    data = load_labelled_split(arguments, "test", ["bee", "ant"])
    assert data.labels("test").tolist() == [1, 1, 0, 0] and data.name == "shots"


def test_the_data_bears_the_folders_own_name(tmp_path, monkeypatch):
    for number in range(20):
        picture(tmp_path / "clothes" / "train" / ("ant", "bee")[number % 2] / f"{number}.png")
    assert load(train_dir=tmp_path / "clothes" / "train").name == "clothes"
    monkeypatch.chdir(tmp_path / "clothes")
    assert own_name(".") == "clothes"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not decode AVIF")
def test_avif_is_used_where_pillow_decodes_it(tmp_path):
    picture(tmp_path / "ant" / "a.avif")
    picture(tmp_path / "bee" / "b.avif")
    assert len(read_image_folders(str(tmp_path))["train"].files) == 2


def test_avif_is_named_where_pillow_does_not_decode_it(tmp_path, monkeypatch):
    picture(tmp_path / "ant" / "a.png")
    (tmp_path / "ant" / "b.avif").write_bytes(b"x")
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    assert named(read_image_folders(str(tmp_path))["train"]) == {str(Path("ant", "b.avif"))}


def test_a_link_that_leads_back_is_entered_once(tmp_path):
    picture(tmp_path / "ant" / "a.png")
    (tmp_path / "ant" / "again").symlink_to(tmp_path / "ant", target_is_directory=True)
    assert len(read_image_folders(str(tmp_path))["train"].files) == 1


def test_a_table_names_the_images_and_what_is_known_of_them(tmp_path):
    for number in range(12):
        picture(tmp_path / f"test_{number}.png")
    rows = [f"test_{number}.png,{'ab'[number % 2]}" for number in range(10)]
    (tmp_path / "metadata.csv").write_text("\r\n".join(["file_name,label", *rows]))
    data = load(train_dir=tmp_path, train_val_split=0.4)
    assert data.class_names == ["a", "b"] and len(data.splits["train"]) + len(data.splits["validation"]) == 10
    assert data.unused == {"train": {"not in the table": ["test_10.png", "test_11.png"]}}
    (tmp_path / "metadata.csv").write_text("file_name,label\nnowhere.png,a\n")
    with pytest.raises(ValueError, match=r"names 1 file not there, '.*nowhere.png' first"):
        load(train_dir=tmp_path)
    (tmp_path / "metadata.csv").write_text("name,label\ntest_1.png,a\n")
    with pytest.raises(ValueError, match="in a column file_name; it has name, label"):
        load(train_dir=tmp_path)


@pytest.mark.parametrize("tables", ["in each split", "beside the splits"])
def test_tables_of_splits(tmp_path, tables):
    sizes = {"train": 6, "valid": 2, "test": 4}
    rows = {split: [f"{number}.png,{'ab'[number % 2]}\n" for number in range(size)] for split, size in sizes.items()}
    for split, size in sizes.items():
        for number in range(size + 1):  # the last is in no table
            picture(tmp_path / split / f"{number}.png")
        if tables == "in each split":
            (tmp_path / split / "metadata.csv").write_text("\ufefffile_name,label\n" + "".join(rows[split]))
    if tables == "beside the splits":
        table = "".join(f"{split}/{row}" for split in rows for row in rows[split])
        (tmp_path / "metadata.csv").write_text("\ufefffile_name,label\n" + table)
    data = load(train_dir=tmp_path)
    found = {split: dataset["label"] for split, dataset in data.splits.items()}
    assert found == {"train": [0, 1] * 3, "validation": [0, 1], "test": [0, 1, 0, 1]}
    left = {name for each in data.unused.values() for names in each.values() for name in names}
    assert left == {str(Path("train", "6.png")), str(Path("valid", "2.png")), str(Path("test", "4.png"))}


def test_images_in_one_folder_beside_a_table_say_what_the_table_must_be(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "labels.csv").write_text("name,class\na.png,x\nb.png,y\n")
    with pytest.raises(ValueError, match=r"'images': a classifier needs two \('labels.csv' is not used: .* file_name"):
        load(train_dir=tmp_path)


def test_a_folder_divided_into_splits_is_not_another(tmp_path):
    for number in range(4):
        picture(tmp_path / "shots" / "train" / ("ant", "bee")[number % 2] / f"{number}.png")
    with pytest.raises(ValueError, match="--split 'test' is not in the data; its splits: train"):
        load_labelled_split(ScoredDataArguments(dataset_name=str(tmp_path / "shots")), "test", None)


def test_several_labels_an_image_are_refused(tmp_path):
    lines = []
    for number in range(4):
        picture(tmp_path / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "label": ["a", "b"][: 1 + number % 2]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"'label' holds a list of labels for each image, .* one label an image"):
        load(train_dir=tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ["no folder with an image", "folder of its name"]),
        (["a.png", "b.jpg"], ["holds 2 images and no folder of a class", "folder of its name"]),
        (["a.png"], ["holds 1 image and"]),
        (["a.png", "labels.csv"], ["1 image beside 'labels.csv'", "metadata.csv", "file_name", "--label_column_name"]),
        (["x/a.txt"], ["no folder with an image"]),
    ],
)
def test_folders_without_classes_say_what_to_do(tmp_path, files, words):
    for name in files:
        if name.endswith((".png", ".jpg")):
            picture(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    with pytest.raises(ValueError) as refusal:
        load(train_dir=tmp_path)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_class_with_one_image_and_too_small_a_part_for_validation(tmp_path):
    for name, count in (("ant", 4), ("bee", 1)):
        for number in range(count):
            picture(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=r"class 'bee' has 1 image, .*--validation_dir"):
        load(train_dir=tmp_path)
    picture(tmp_path / "bee" / "1.png")
    with pytest.raises(ValueError, match=r"0.1 of 6 images is less than one for each of 2 classes.*--validation_dir"):
        load(train_dir=tmp_path)
