"""Labels of patches: annotators of every kind, views that take their labels along, and runs."""

import json

import numpy as np
import pytest
import torch
from classifiers import NAMES, save
from datasets import Dataset, Features, Image, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close
from training_runs import TINY, finish
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, ViTImageProcessor

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.models.losses import token_labeling_loss
from hf_vit.sample_keys import SampleKey
from hf_vit.tasks.image_classification.annotator import Annotator
from hf_vit.tasks.image_classification.augment import AugmentationArguments, TrainTransform
from hf_vit.tasks.image_classification.data import class_mapping
from hf_vit.tasks.image_classification.score_maps import DrawnLabels, KeptScores, patch_shares
from hf_vit.tasks.image_classification.token_labels import TokenLabelArguments, TokenLabeling
from hf_vit.train import build_task, parse
from hf_vit.vision.processors import normalize

MEAN_POOLED = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"patch_size": 8, "image_size": 24, "pooling": "mean", "pooling_norm": "before"},
}


def saved(folder, model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    form = {"size": {"height": 24, "width": 24}, "image_mean": [0.2] * 3, "image_std": [0.3] * 3}
    ViTImageProcessor(**form).save_pretrained(folder)
    return str(folder), model


def mean_pooled(**options):
    return HfViTForImageClassification(HfViTConfig(**MEAN_POOLED, **options, **class_mapping(NAMES)))


# --- annotators ------------------------------------------------------------------------------------------------------


def timm_cnn():
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", **class_mapping(NAMES)))


@pytest.mark.parametrize("kind", ["resnet", "timm cnn", "ours, mean"])
def test_answers_by_position_have_the_classifiers_own_as_their_mean(tmp_path, kind):
    """Where the logits are linear in the mean of the positions."""
    if kind == "resnet":
        path, _ = save(tmp_path, "cnn")
    else:
        path, _ = saved(tmp_path, timm_cnn() if kind == "timm cnn" else mean_pooled())
    annotator = Annotator(path, NAMES)
    pixels = torch.randint(0, 256, (2, 3, 24, 24)).float()
    with torch.no_grad():
        by_position = annotator(pixels)
        whole = annotator.model(pixel_values=annotator.seen(pixels)).logits
    assert by_position.shape[:2] == (2, 3) and by_position.shape[2] == by_position.shape[3]
    assert_close(by_position.mean((2, 3)), whole)


@pytest.mark.parametrize("kind", ["vit", "timm", "ours"])
def test_patches_of_transformers_go_through_the_head(tmp_path, kind):
    path, model = save(tmp_path, kind)
    annotator = Annotator(path, NAMES)
    pixels = torch.randint(0, 256, (2, 3, 24, 24)).float()
    with torch.no_grad():
        got, seen = annotator(pixels), annotator.seen(pixels)
        if kind == "timm":
            tokens, head = model.timm_model.forward_features(seen), model.timm_model.head
            tokens = model.timm_model.fc_norm(tokens)
        else:
            tokens, head = model.base_model(seen).last_hidden_state, model.classifier
        expected = head(tokens[:, -9:]).transpose(1, 2).unflatten(2, (3, 3))
    assert_close(got, expected)


def test_a_head_for_labels_of_patches_answers_itself(tmp_path):
    path, model = saved(tmp_path, mean_pooled(use_token_labeling_head=True))
    annotator = Annotator(path, NAMES[::-1])
    pixels = torch.randint(0, 256, (2, 3, 24, 24)).float()
    with torch.no_grad():
        expected = model(annotator.seen(pixels)).token_logits.transpose(1, 2).unflatten(2, (3, 3))
        assert_close(annotator(pixels), expected.flip(1))  # in the student's order


def test_annotators_that_do_not_fit(tmp_path):
    two_poolings = {**MEAN_POOLED, "pooling": ["mean", "max"]}
    model = HfViTForImageClassification(HfViTConfig(**two_poolings, **class_mapping(NAMES)))
    path, _ = saved(tmp_path / "pooled", model)
    with pytest.raises(ValueError, match="gives no features by position that its classifier takes"):
        Annotator(path, NAMES)
    path, _ = saved(tmp_path / "classes", mean_pooled())
    with pytest.raises(ValueError, match=r"--token_label_annotator .* lacks dog .* --token_label_class_order index"):
        Annotator(path, ["ant", "bee", "dog"])
    config = HfViTConfig(**{**MEAN_POOLED, "image_size": [16, 24]})
    with pytest.raises(ValueError, match="sees images of 24 x 24, another aspect than the model's 16 x 24"):
        TokenLabeling(TokenLabelArguments(), Annotator(path, NAMES), config, NAMES, 0)


def test_answers_are_brought_to_the_students_grid(tmp_path):
    """A finer grid's answers are averaged, a coarser one's spread; they stay distributions."""
    path, _ = saved(tmp_path, mean_pooled())
    config = HfViTConfig(**{**MEAN_POOLED, "patch_size": 4})
    labeling = TokenLabeling(TokenLabelArguments(), Annotator(path, NAMES), config, NAMES, 0)
    labels = labeling.labels({}, torch.randint(0, 256, (2, 3, 24, 24)))
    assert labels.shape == (2, 36, 3)
    assert_close(labels.sum(-1), torch.ones(2, 36))


# --- labels that follow views ----------------------------------------------------------------------------------------

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
SIDE = 32


def quadrants():
    """An image of four coloured quadrants, and the class (0 to 3) of each pixel."""
    classes = torch.arange(4).view(2, 2).repeat_interleave(SIDE // 2, 0).repeat_interleave(SIDE // 2, 1)
    return COLOURS[classes].permute(2, 0, 1).to(torch.uint8), classes


def colours_of(pixels):
    """Parts (N, 4) of the colours in each patch of 4 x 4 pixels of a view; black, and mixed colours, are none."""
    distance = (pixels.permute(1, 2, 0)[..., None, :].long() - COLOURS).abs().sum(-1)  # (H, W, 4)
    nearest = torch.where(distance.amin(-1) < 100, distance.argmin(-1), -1)
    patches = nearest.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2).flatten(0, 1)
    return torch.stack([(patches == colour).float().mean(1) for colour in range(4)], dim=1)


MOVES = {
    "none": {},
    "flip": {"horizontal_flip_prob": 1.0},
    "crop": {"train_crop": "random_resized_crop", "crop_scale": [0.2, 0.6], "horizontal_flip_prob": 0.5},
    "reflected": {"train_crop": "random_crop", "crop_padding": 6},
    "colour": {"color_jitter": 0.01, "horizontal_flip_prob": 0.5},
    "shift": {"affine_translate": 0.3},
}


@pytest.mark.parametrize("source", ["kept", "mask"])
@pytest.mark.parametrize("move", MOVES)
def test_labels_follow_crops_and_flips(move, source):
    image, classes = quadrants()
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    transform = TrainTransform(AugmentationArguments(**MOVES[move]), processor, 0)
    if source == "kept":
        kept_classes = torch.arange(4).view(1, 1, 2, 2)
        label, row = KeptScores(torch.ones(1, 1, 2, 2), kept_classes, 4, (4, 4)), {}
    else:
        png = PILImage.fromarray(classes.numpy().astype(np.uint8))
        label = DrawnLabels(Image(decode=False), list("abcd"), (4, 4))
        row = {"token_label": Image(decode=False).encode_example(png), "size": (SIDE, SIDE)}
    keys = [SampleKey(epoch, 0, 0) for epoch in range(6)]
    views = transform.with_positions([image] * 6, keys)
    for (pixels, positions), plain in zip(views, transform([image] * 6, keys)):
        assert torch.equal(pixels, plain)  # the same views as without labels
        labels, seen = label(0, row, positions), colours_of(pixels)
        pure = seen.amax(1) == 1
        assert pure.sum() > 10
        assert torch.equal(labels[pure], seen[pure])
        if move in ("none", "flip", "reflected"):  # no colours are mixed
            assert_close(labels, seen)
        # A patch without a label is one beyond the image.
        assert (
            (labels.sum(1) == 0) == (pixels.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).amax((0, 3)) == 0).flatten()
        ).all()


def test_boxes_hold_their_category_or_the_images_class():
    feature = {"bbox": Sequence(Sequence(Value("float32"))), "category": Sequence(Value("string"))}
    positions = torch.stack(torch.meshgrid(*[(torch.arange(8) + 0.5) / 8] * 2, indexing="ij"))
    positions = torch.cat((positions, torch.ones(1, 8, 8)))
    objects = {"bbox": [[0, 0, 4, 8], [4, 0, 2, 4]], "category": ["bee", "cow"]}
    row = {"token_label": objects, "size": (8, 8), "label": 0}
    labels = DrawnLabels(feature, NAMES, (4, 4))(0, row, positions)
    assert labels.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    row["token_label"] = {"bbox": [[0, 0, 4, 8]]}
    labels = DrawnLabels({"bbox": feature["bbox"]}, NAMES, (4, 4))(0, row, positions)
    assert labels.tolist() == [[1, 0, 0], [0, 0, 0]] * 2
    row["token_label"] = {"bbox": [[4, 0, 8, 8]]}
    with pytest.raises(ValueError, match=r"box \[4, 0, 8, 8\] .* is not inside its image of 8 x 8 pixels"):
        DrawnLabels({"bbox": feature["bbox"]}, NAMES, (4, 4))(0, row, positions)
    row["token_label"] = {**objects, "category": ["bee", "dog"]}
    with pytest.raises(ValueError, match="a box of 'dog', which is no class of the data"):
        DrawnLabels(feature, NAMES, (4, 4))(0, row, positions)
    with pytest.raises(ValueError, match="takes a column of masks"):
        DrawnLabels(Value("string"), NAMES, (4, 4))


def test_what_the_best_classes_leave_over_is_spread_evenly():
    scores = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    kept = KeptScores(scores, torch.tensor([3, 1]).view(1, 2, 1, 1), 7, (2, 2))
    positions = torch.full((3, 2, 2), 0.5)
    positions[2] = 1
    assert_close(kept(0, {}, positions)[0], torch.tensor([0.05, 0.25, 0.05, 0.5, 0.05, 0.05, 0.05]))


def test_shares_of_cells():
    cells = torch.tensor([[0, 0, 1, -1], [0, 2, -1, -1]])
    assert_close(patch_shares(cells, 3, (2, 2)), torch.tensor([[0.75, 0, 0.25], [0, 1, 0]]))
    assert_close(patch_shares(torch.full((2, 2), -1), 2, (2, 2)), torch.zeros(1, 2))


def test_mixtoken_mixes_labels_as_it_mixes_patches():
    config = HfViTConfig(**{**MEAN_POOLED, "patch_size": 4})
    labeling = TokenLabeling(TokenLabelArguments(mixtoken_alpha=1.0), None, config, NAMES, 0)
    own = F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    areas = []
    for epoch in range(40):
        targets, mixed, mask = labeling.mix(
            torch.arange(3), own[:, None].repeat(1, 36, 1), torch.tensor([epoch, 0, 0])
        )
        assert_close(mixed[1, mask], own[[0]].expand(int(mask.sum()), 3))
        assert_close(mixed[1, ~mask], own[[1]].expand(int((~mask).sum()), 3))
        assert_close(targets, mixed.mean(1))  # an image's label is that of its patches
        areas.append(mask.float().mean().item())
    assert min(areas) < 0.1 and max(areas) > 0.5 and 0.2 < np.mean(areas) < 0.5


# --- runs ------------------------------------------------------------------------------------------------------------

RUN = ["--recipe=digits", *TINY, "--max_eval_samples=20", "--seed=0", "--mixup_alpha=0", "--cutmix_alpha=0"]
RUN += ["--num_train_epochs=1", "--affine_degrees=0", "--affine_shear=0"]


@pytest.fixture(scope="module")
def annotator(tmp_path_factory):
    """A classifier of the digits, of random weights."""
    names = [str(digit) for digit in range(10)]
    options = {**MEAN_POOLED, "image_size": 8, "patch_size": 2}
    model = HfViTForImageClassification(HfViTConfig(**options, **class_mapping(names)))
    folder = tmp_path_factory.mktemp("annotator")
    saved(folder, model)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def step_of(argv):
    """A task and the losses of its first batch."""
    task = build_task(parse([*RUN, *argv]))
    batch = next(iter(task.train_loader(1)))
    return task, batch, task.training_step(task.model, batch)


def test_a_run_adds_the_patches_loss(annotator):
    task, batch, output = step_of([f"--token_label_annotator={annotator}", "--token_labeling_weight=0.25"])
    assert task.model.config.use_token_labeling_head and task.model.config.token_labeling_weight == 0.25
    logs = {name: value.item() for name, value in output.logs.items()}
    assert output.loss.item() == pytest.approx(logs["label_loss"] + 0.25 * logs["token_label_loss"])
    outputs = task.model(
        pixel_values=task.processor.rescale_and_normalize(
            batch["pixel_values"],
            True,
            1 / 255,
            True,
            tuple(task.processor.image_mean),
            tuple(task.processor.image_std),
        )
    )
    labels = task.token_labeling.labels(batch, batch["pixel_values"])
    expected = token_labeling_loss(outputs.token_logits, labels).item()
    assert logs["token_label_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_teacher_goes_with_labels_of_patches(annotator):
    """And with a token of its own; each of the three losses has its weight."""
    argv = [f"--teacher={annotator}", f"--token_label_annotator={annotator}", "--token_labeling_weight=0.25"]
    tiny = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
    token = ["--config_overrides", f"{tiny},use_distillation_token=true,use_class_token=true,pooling=cls"]
    task, batch, output = step_of([*argv, *token, "--distillation_alpha=0.25"])
    assert task.model.config.use_token_labeling_head and task.model.distillation_head is not None
    logs = {name: value.item() for name, value in output.logs.items()}
    assert logs.keys() == {"label_loss", "teacher_loss", "token_label_loss"}
    expected = 0.75 * logs["label_loss"] + 0.25 * logs["teacher_loss"] + 0.25 * logs["token_label_loss"]
    assert output.loss.item() == pytest.approx(expected)
    outputs = task.model(pixel_values=normalize(batch["pixel_values"], task.processor))
    label_loss = F.cross_entropy(outputs.class_logits, batch["labels"])
    assert logs["label_loss"] == pytest.approx(label_loss.item(), rel=1e-5)


def test_kept_answers_are_those_of_the_views(annotator, tmp_path):
    """Of all classes, on views that are the whole images."""
    still = [f"--token_label_annotator={annotator}", "--train_crop=resize", "--affine_translate=0", "--affine_scale=0"]
    kept = [*still, f"--token_label_cache_dir={tmp_path}", "--token_label_top_k=10"]
    _, _, fresh = step_of(still)
    for _ in range(2):  # computed, then read
        task, batch, output = step_of(kept)
        assert batch["token_labels"].shape == (len(batch["labels"]), *(task.model.config.grid_size[0] ** 2, 10))
        assert output.logs["token_label_loss"].item() == pytest.approx(fresh.logs["token_label_loss"].item(), rel=1e-3)
    with pytest.raises(ValueError, match="holds labels of other images, of another annotator"):
        step_of([*kept[:-1], "--token_label_top_k=3"])
    with pytest.raises(ValueError, match="holds labels of other images"):
        step_of([*kept, "--max_train_samples=50"])
    file = tmp_path / "token_labels.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"is damaged .* delete it"):
        step_of(kept)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--teacher=x", "--mixtoken_alpha=1"], "--mixtoken_alpha does not go with --teacher"),
        (["--cutmix_alpha=1"], "--cutmix_alpha does not go with --token_label_annotator; --mixtoken_alpha mixes"),
        (["--token_label_cache_dir=x", "--auto_augment=randaugment"], "--auto_augment randaugment turns and shifts"),
        (["--model_type=resnet", "--config_overrides="], "resnet has no field 'use_token_labeling_head'"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together(annotator, argv, message):
    with pytest.raises((ValueError, SystemExit), match=message):
        build_task(parse([*RUN, f"--token_label_annotator={annotator}", *argv]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mixtoken_alpha=1"], "--mixtoken_alpha goes with --token_label_annotator"),
        (["--token_label_column_name=mask"], "--token_label_column_name 'mask' is no column; columns: image, label"),
        (["--config_overrides=use_token_labeling_head=true"], "a model with a token labeling head needs"),
    ],
    ids=str,
)
def test_what_lacks_an_annotator(argv, message):
    with pytest.raises(ValueError, match=message):
        build_task(parse([*RUN, *argv]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"token_label_cache_dir": "x"}, "--token_label_cache_dir goes with --token_label_annotator"),
        ({"token_label_top_k": 0}, "--token_label_top_k must be >= 1"),
        ({"token_labeling_weight": -1}, "--token_labeling_weight must be >= 0"),
        ({"mixtoken_alpha": -1}, "--mixtoken_alpha must be >= 0"),
    ],
    ids=str,
)
def test_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        TokenLabelArguments(**given)


def test_without_weight_a_run_is_as_one_without_labels(annotator, tmp_path):
    runs = []
    for name, argv in {
        "plain": [],
        "off": [f"--token_label_annotator={annotator}", "--token_labeling_weight=0"],
        "on": [f"--token_label_annotator={annotator}", "--mixtoken_alpha=1"],
    }.items():
        finish(*RUN, *argv, f"--output_dir={tmp_path / name}")
        runs.append(load_file(tmp_path / name / "model.safetensors"))
    plain, off, on = runs
    assert plain.keys() == off.keys() and all(torch.equal(plain[name], off[name]) for name in plain)
    assert set(on) - set(plain) == {"token_labeling_head.weight", "token_labeling_head.bias"}
    record = json.loads((tmp_path / "on" / "run.json").read_text())
    assert record["annotator"]["name"] == annotator
    loaded = HfViTForImageClassification.from_pretrained(tmp_path / "on")
    assert loaded.config.use_token_labeling_head and loaded.config.token_labeling_weight == 0.5


def test_masks_of_the_data_label_patches(tmp_path):
    """Two classes side by side in every image; the mask names both."""
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    image[:, 4:], mask[:, 4:] = 200, 1
    rows = {"image": [PILImage.fromarray(image)] * 8, "label": [0, 1] * 4, "parts": [PILImage.fromarray(mask)] * 8}
    features = Features({"image": ImageFeature(), "label": Value("int64"), "parts": ImageFeature()})
    data = Dataset.from_dict(rows, features)
    for split in ("train", "test"):
        data.to_parquet(tmp_path / f"{split}.parquet")
    argv = [f"--dataset_name={tmp_path}", "--token_label_column_name=parts", "--class_names", "a", "b"]
    flip = ["--horizontal_flip_prob=0", "--train_crop=resize", "--affine_translate=0", "--affine_scale=0"]
    task = build_task(parse([*RUN, *argv, *flip]))
    batch = next(iter(task.train_loader(1)))
    rows, columns = task.model.config.grid_size
    labels = batch["token_labels"].unflatten(1, (rows, columns))
    assert_close(labels[:, :, : columns // 2, 0], torch.ones(len(labels), rows, columns // 2))
    assert_close(labels[:, :, columns // 2 :, 1], torch.ones(len(labels), rows, columns // 2))
