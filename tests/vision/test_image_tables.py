"""Tables of images as people write them: any delimiter and line ends, rows given twice, files that are not there."""

import numpy as np
import pytest
from PIL import Image

from hf_vit.tasks.image_classification.arguments import DataArguments, ScoredDataArguments
from hf_vit.tasks.image_classification.data import load_labelled_images, load_labelled_split

ROWS = [(f"{number:03d}.png", "ab"[number % 2]) for number in range(8)]


@pytest.fixture
def folder(tmp_path):
    for name, _ in ROWS:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def written(path, rows, delimiter=",", end="\n", header=("file_name", "label")):
    path.write_bytes(end.join(delimiter.join(row) for row in [header, *rows]).encode())
    return path


def load(**arguments):
    given = {
        name: str(value) if name.endswith(("dir", "dataset_name")) else value for name, value in arguments.items()
    }
    return load_labelled_images(DataArguments(**{"train_val_split": 0.25, **given}), seed=0)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
def test_delimiters_and_line_ends(folder, delimiter, end, name):
    written(folder / name, ROWS, delimiter, end)
    data = load(train_dir=folder)
    assert data.class_names == ["a", "b"] and data.summary() == "2: train a 3, b 3; validation a 1, b 1"


def test_any_table_is_a_data_set_with_the_splits_that_it_names(folder):
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = [(*row, split) for row, split in zip(ROWS, splits)]
    path = written(folder / "birds.csv", rows, header=("image_id", "kind", "split"))
    names = {"image_column_name": "image_id", "label_column_name": "kind"}
    data = load(dataset_name=path, **names)
    assert data.name == "birds" and {name: len(split) for name, split in data.splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    scored = ScoredDataArguments(dataset_name=str(path), **names)
    assert load_labelled_split(scored, "test", ["a", "b"]).labels("test").tolist() == [0, 1]
    written(path, ROWS)
    assert len(load_labelled_split(ScoredDataArguments(dataset_name=str(path)), "test", None).splits["test"]) == 8
    written(path, [(*row, "holdout") for row in ROWS], header=("file_name", "label", "split"))
    with pytest.raises(ValueError, match="has 'holdout' in its column split, which can be train, "):
        load(dataset_name=path)


def test_names_that_look_like_numbers_stay_as_they_are_spelled(folder):
    for number in range(4):
        (folder / f"{number:03d}").write_bytes((folder / f"{number:03d}.png").read_bytes())
    rows = [(f"{number:03d}", "ab"[number % 2]) for number in range(4)]
    assert load(dataset_name=written(folder / "numbers.csv", rows), train_val_split=0.5).summary().startswith("2: ")


def test_a_row_given_twice_counts_once_and_is_told(folder):
    written(folder / "labels.csv", [*ROWS, ROWS[3], ROWS[3]])
    data = load(train_dir=folder)
    assert data.unused["train"]["row given twice"] == ["003.png"] * 2
    assert sum(len(split) for split in data.splits.values()) == 8
    assert data.describe()["unused_files"]["train"] == {"row given twice": 2}


def test_contradictions_and_missing_files_are_errors(folder):
    written(folder / "labels.csv", [*ROWS, ("003.png", "a")])
    with pytest.raises(ValueError, match=r"names '003.png' twice with different values, in rows 4 and 9"):
        load(train_dir=folder)
    written(folder / "labels.csv", [*ROWS, ("lost.png", "a"), ("gone.png", "a")])
    with pytest.raises(ValueError, match=r"names 2 files not there, 'lost.png' first"):
        load(train_dir=folder)
    (folder / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match=r"metadata.csv' cannot be read"):
        load(train_dir=folder)


def test_classes_that_a_split_lacks_are_told_and_those_that_it_has_too_many_refused(folder):
    for name, label in [*ROWS, ("000.png", "c"), ("001.png", "c")]:
        for split in ("train", "validation"):
            place = folder / "parts" / split / label
            if split == "train" or label == "a":
                place.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes((folder / name).read_bytes())
    assert load(train_dir=folder / "parts").missing() == "validation has no image of b, c"
    (folder / "parts" / "validation" / "d").mkdir()
    (folder / "parts" / "validation" / "d" / "0.png").write_bytes((folder / "000.png").read_bytes())
    with pytest.raises(ValueError, match="the validation split has labels without a class: d; classes: a, b, c"):
        load(train_dir=folder / "parts")
