"""Labelled images from every kind of source, and the errors of those that cannot be trained on."""

import io

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image
from PIL import Image as PILImage
from sklearn.model_selection import StratifiedKFold
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor, pipeline

from hf_vit.tasks.image_classification.augment import (
    AugmentationArguments,
    EvaluationTransform,
    TrainTransform,
)
from hf_vit.tasks.image_classification.data import DataArguments, load_labelled_images
from hf_vit.tasks.image_classification.views import ImageView
from hf_vit.trainer.sampler import EpochBatchSampler
from hf_vit.vision.decoding import decode, decode_pixels
from hf_vit.vision.processors import normalize

NAMES = ["ant", "bee", "cow"]


def pictures(count, mode="RGB"):
    random = np.random.default_rng(0)
    shape = (12, 10) if mode == "L" else (12, 10, len(mode))
    return [PILImage.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode) for _ in range(count)]


def table(labels, feature=None, image_name="picture"):
    features = {image_name: Image(), "kind": feature or ClassLabel(names=NAMES)}
    return Dataset.from_dict({image_name: pictures(len(labels)), "kind": labels}, datasets.Features(features))


def load(source, **arguments):
    return load_labelled_images(DataArguments(dataset_name=str(source), **arguments), seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save(folder, splits, form):
    if form == "saved to disk":
        DatasetDict(splits).save_to_disk(folder)
    elif form == "parquet":
        for split, dataset in splits.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    else:
        for split, dataset in splits.items():
            for i, row in enumerate(dataset):
                place = folder / split / NAMES[row["kind"]]
                place.mkdir(parents=True, exist_ok=True)
                row["picture"].save(place / f"{i:03d}.png")
    return folder


@pytest.mark.parametrize("form", ["saved to disk", "parquet", "imagefolder"])
def test_local_sources(tmp_path, form):
    splits = {"train": table([0, 1, 2] * 8), "test": table([2, 2, 1, 0])}
    data = load(save(tmp_path / "source", splits, form), train_val_split=0.25)
    assert data.class_names == NAMES
    described = data.describe()["splits"]
    assert {name: split["class_counts"] for name, split in described.items()} == {
        "train": [6, 6, 6],
        "validation": [2, 2, 2],
        "test": [1, 1, 2],
    }
    row = next(row for row in data.splits["test"] if row["label"] == 0)
    assert np.array_equal(decode(row["image"], 0), splits["test"][3]["picture"])


def test_the_fingerprint_is_of_the_content_alone(tmp_path):
    splits = {"train": table([0, 1, 2] * 8), "test": table([2, 1, 0])}
    sources = [save(tmp_path / form, splits, form) for form in ("saved to disk", "parquet")]
    first, second = (load(source).describe()["splits"] for source in sources)
    assert {s: first[s]["fingerprint"] for s in first} == {s: second[s]["fingerprint"] for s in second}
    other = save(tmp_path / "other", {**splits, "train": table([0, 1, 1] * 8)}, "parquet")
    assert load(other).describe()["splits"]["train"]["fingerprint"] != first["train"]["fingerprint"]


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        (datasets.Value("string"), ["dog", "cat", "dog", "cat"], ["cat", "dog"]),
        (datasets.Value("int64"), [7, 3, 3, 7], ["3", "7"]),
        (datasets.Value("bool"), [True, False, True, False], ["False", "True"]),
    ],
)
def test_labels_without_names_are_encoded_in_order(tmp_path, feature, labels, names):
    source = save(tmp_path / "source", {"train": table(labels, feature)}, "saved to disk")
    data = load(source, label_column_name="kind", train_val_split=0.5)
    assert data.class_names == names
    indices = np.concatenate([data.labels("train"), data.labels("validation")])
    assert sorted(indices) == sorted(names.index(str(label)) for label in labels)


def test_splits_with_classes_in_another_order_are_matched_by_name(tmp_path):
    train, validation = table([0, 1, 2] * 4), table([0, 1, 1], ClassLabel(names=["cow", "ant"]))
    for name, dataset in (("train", train), ("validation", validation)):
        dataset.save_to_disk(tmp_path / name)
    arguments = DataArguments(train_dir=str(tmp_path / "train"), validation_dir=str(tmp_path / "validation"))
    data = load_labelled_images(arguments, seed=0)
    assert data.labels("validation").tolist() == [2, 0, 0]


def test_the_made_validation_split_follows_the_seed(tmp_path):
    source = save(tmp_path / "source", {"train": table([0, 1, 2] * 20)}, "saved to disk")
    arguments = DataArguments(dataset_name=str(source), train_val_split=0.2)
    first, again, other = (
        load_labelled_images(arguments, seed).describe()["splits"]["validation"]["fingerprint"] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_test_split_without_labels_is_left_out(tmp_path):
    source = save(tmp_path / "source", {"train": table([0, 1, 2] * 8), "test": table([-1, -1])}, "saved to disk")
    assert set(load(source, train_val_split=0.25).splits) == {"train", "validation"}


TWO_IMAGES = {"a": pictures(4), "b": pictures(4), "kind": [0, 1, 0, 1]}
NO_IMAGE = Dataset.from_dict({"x": [1, 2], "label": [0, 1]})


@pytest.mark.parametrize(
    ("splits", "arguments", "words"),
    [
        ({"train": NO_IMAGE}, {}, ["--image_column_name", "'x'"]),
        ({"train": Dataset.from_dict(TWO_IMAGES)}, {}, ["several", "'a', 'b'", "--image_column_name"]),
        (
            {"train": table([[0, 1], [2]] * 4, datasets.List(ClassLabel(names=NAMES)))},
            {"label_column_name": "kind"},
            ["'kind' holds a list of labels", "one label an image"],
        ),
        (
            {
                "train": table([[0.0, 1.0], [1.0, 0.0]] * 4, datasets.List(datasets.Value("float32"))).rename_column(
                    "kind", "labels"
                )
            },
            {},
            ["'labels' holds a list of labels", "--label_column_name"],
        ),
        ({"train": table([0, 1] * 4)}, {"image_column_name": "photo"}, ["'photo'", "'picture'"]),
        ({"train": table([0, 1] * 4, datasets.Value("int64"))}, {}, ["--label_column_name", "'kind'"]),
        ({"train": table([0, 1] * 4), "test": table([])}, {}, ["empty"]),
        ({"train": table([])}, {}, ["empty"]),
        ({"train": table([0] * 8, ClassLabel(names=["ant"]))}, {}, ["one class", "'ant'"]),
        ({"train": table([1] * 8)}, {}, ["one class", "'bee'"]),
        ({"train": table([0, 1, 2, 2, 1])}, {}, ["'ant'", "two of each"]),
        ({"train": table([0, 1] * 4), "test": table([0, -1])}, {}, ["test split", "-1", "ant, bee, cow"]),
        (
            {"train": table(["x", "y"] * 4, datasets.Value("string")), "test": table(["z"], datasets.Value("string"))},
            {"label_column_name": "kind"},
            ["test split", "z", "x, y"],
        ),
        ({"train": table([0, 1] * 4)}, {"train_val_split": 0}, ["--train_val_split 0"]),
        ({"test": table([0, 1] * 4)}, {}, ["no train split", "test"]),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path, splits, arguments, words):
    source = save(tmp_path / "source", splits, "saved to disk")
    with pytest.raises(ValueError) as refusal:
        load(source, **arguments)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_folder_that_is_not_there():
    with pytest.raises(ValueError, match="no such folder: 'nowhere'"):
        load_labelled_images(DataArguments(train_dir="nowhere"), seed=0)


@pytest.mark.parametrize("broken", ["cut", "text"])
def test_a_corrupt_image_is_named(tmp_path, broken):
    source = save(tmp_path / "source", {"train": table([0, 1, 2] * 4)}, "imagefolder")
    victim = source / "train" / "bee" / "004.png"
    victim.write_bytes(victim.read_bytes()[:100] if broken == "cut" else b"no image")
    data = load(source, train_val_split=0.25)
    view = ImageView(data.splits["train"], lambda images, keys: torch.zeros(len(images), 3, 1, 1))
    with pytest.raises(ValueError, match=r"sample \d+ .*004\.png"):
        for i in range(len(data.splits["train"])):
            view[i]
        for i in range(len(data.splits["validation"])):
            ImageView(data.splits["validation"], view.transform)[i]


AUGMENTATION = AugmentationArguments(horizontal_flip_prob=0.5, affine_degrees=30, affine_translate=0.2)


def batches(num_workers, epoch, **options):
    data = load("sklearn_digits", train_val_split=0, max_train_samples=40)
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    view = ImageView(data.splits["train"], TrainTransform(AUGMENTATION, processor, seed=0), **options)
    sampler = EpochBatchSampler(len(view), 8, 1, seed=0)
    sampler.set_epoch(epoch)
    return list(DataLoader(view, batch_sampler=sampler, num_workers=num_workers, generator=torch.Generator()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_kept_in_memory_are_decoded_once_and_give_the_same_views(num_workers, monkeypatch):
    expected = batches(num_workers, epoch=1)
    calls = []
    monkeypatch.setattr(
        "hf_vit.tasks.image_classification.views.decode_pixels",
        lambda *args: calls.append(args) or decode_pixels(*args),
    )
    kept = batches(num_workers, epoch=1, keep_in_memory=True)
    assert len(calls) == 40
    assert all(torch.equal(a[name], b[name]) for a, b in zip(expected, kept, strict=True) for name in a)


def test_views_do_not_depend_on_workers_and_leave_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    here, there, later = batches(0, epoch=1), batches(2, epoch=1), batches(0, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(here, there) for name in a)
    by_index = [
        {int(k[1]): p for b in run for k, p in zip(b["sample_key"], b["pixel_values"])} for run in (here, later)
    ]
    assert sum(not torch.equal(by_index[0][i], by_index[1][i]) for i in by_index[0]) > 20


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_evaluation_sees_what_the_pipeline_sees(tmp_path, mode):
    from hf_vit import HfViTConfig, HfViTForImageClassification

    processor = ViTImageProcessor(size={"height": 8, "width": 16}, image_mean=[0.4] * 3, do_convert_rgb=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = HfViTForImageClassification(HfViTConfig(image_size=[8, 16], patch_size=4, num_labels=3, **sizes)).eval()
    image = pictures(1, mode)[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = EvaluationTransform(processor)([decode_pixels({"bytes": file.getvalue(), "path": None}, 0)], [])
    assert pixels.dtype == torch.uint8
    with torch.no_grad():
        expected = model(pixel_values=normalize(pixels, processor)).logits.softmax(-1)[0]
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    scores = {row["label"]: row["score"] for row in classifier(image, top_k=3)}
    assert [scores[model.config.id2label[i]] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-7)


def test_null_cells_count_as_images_that_cannot_be_decoded(tmp_path):
    train = table([0, 1, 2] * 4)
    cells = [None if index == 4 else image for index, image in enumerate(train["picture"])]
    train = Dataset.from_dict({"picture": cells, "kind": train["kind"]}, train.features)
    source = save(tmp_path / "source", {"train": train, "test": table([0, 1, 2])}, "parquet")
    data = load(source, train_val_split=0, on_bad_sample="skip")
    assert data.describe()["bad_samples"] == {"train": 1, "test": 0} and data.labels("train").tolist().count(1) == 3
    kept = load(source, train_val_split=0)
    assert kept.describe()["splits"]["train"]["num_examples"] == 12
    with pytest.raises(ValueError, match="sample 4: its cell is empty; without --streaming, --on_bad_sample skip"):
        ImageView(kept.splits["train"], lambda images, keys: images)[4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_can_be_left_out(tmp_path, num_workers):
    source = save(tmp_path / "source", {"train": table([0, 1, 2] * 4), "test": table([0, 1, 2])}, "imagefolder")
    for name in ("train/bee/004.png", "train/cow/002.png", "test/ant/000.png"):
        (source / name).write_bytes((source / name).read_bytes()[:100])
    data = load(source, train_val_split=0, on_bad_sample="skip", dataloader_num_workers=num_workers)
    described = data.describe()
    assert described["bad_samples"] == {"train": 2, "test": 1}
    assert [described["splits"][name]["class_counts"] for name in ("train", "test")] == [[4, 3, 3], [0, 1, 1]]
    for split in data.splits.values():
        for index, row in enumerate(split):
            decode(row["image"], index)


def test_folds_part_the_training_images_by_class_as_scikit_learn_does():
    arguments = {"dataset_name": "sklearn_digits", "num_folds": 3}
    loaded = [load_labelled_images(DataArguments(**arguments, fold=fold), 7) for fold in range(3)]
    whole = load_labelled_images(DataArguments(dataset_name="sklearn_digits", train_val_split=0.0), 7)
    labels = whole.labels("train")
    parts = StratifiedKFold(3, shuffle=True, random_state=7).split(labels, labels)
    for images, (train, fold) in zip(loaded, parts):
        assert set(images.splits) == {"train", "validation"}
        assert images.splits["validation"]["train_index"] == fold.tolist()
        np.testing.assert_array_equal(images.labels("validation"), labels[fold])
        np.testing.assert_array_equal(images.labels("train"), labels[train])
    with pytest.raises(ValueError, match=r"--num_folds 500: class '\d' has only 1\d\d images"):
        load_labelled_images(DataArguments(**{**arguments, "num_folds": 500}, fold=0), 7)
    with pytest.raises(ValueError, match="--num_folds and --fold go together"):
        DataArguments(**arguments)
    with pytest.raises(ValueError, match="--fold must be >= 0 and <= 2, found 3"):
        DataArguments(**arguments, fold=3)
