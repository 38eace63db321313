"""Views and mixes: fixed by their keys, of the right kind, and equal to torchvision's and timm's."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from transformers import ViTImageProcessor

from hf_vit.sample_keys import SampleKey
from hf_vit.tasks.image_classification.augment import (
    AUTO_AUGMENTS,
    TRAIN_CROPS,
    AugmentationArguments,
    BatchMix,
    TrainTransform,
)
from hf_vit.tasks.image_classification.losses import ClassificationLoss, LossArguments

PROCESSOR = ViTImageProcessor(size={"height": 12, "width": 16}, image_mean=[0.2, 0.4, 0.6])


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 30, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [{"train_crop": crop} for crop in TRAIN_CROPS]
    + [{"auto_augment": name} for name in AUTO_AUGMENTS]
    + [{"color_jitter": 0.4}, {"random_erasing_prob": 0.9}, {"affine_degrees": 20}]
    + [{"horizontal_flip_prob": 0.5}, {"vertical_flip_prob": 0.5}],
    ids=lambda options: "-".join(map(str, *options.items())),
)
def test_each_augmentation_is_fixed_by_the_key_and_varies_with_it(image, options):
    transform = TrainTransform(AugmentationArguments(**options), PROCESSOR, seed=3)
    views = transform([image] * 30, [SampleKey(0, 0, repeat) for repeat in range(30)])
    assert all(view.shape == (3, 12, 16) and view.dtype == torch.uint8 for view in views)
    assert torch.equal(views[4], transform([image], [SampleKey(0, 0, 4)])[0])
    assert (len({view.numpy().tobytes() for view in views}) > 1) == (options != {"train_crop": "resize"})


def test_erased_pixels_are_zero_after_normalisation(image):
    transform = TrainTransform(AugmentationArguments(random_erasing_prob=1.0), PROCESSOR, seed=0)
    view = transform([image], [SampleKey(0, 0, 0)])[0]
    erased = (view == torch.tensor([51, 102, 153], dtype=torch.uint8)[:, None, None]).all(0)
    assert 4 < erased.sum() < 12 * 16 * 0.4
    rows, columns = erased.any(1).sum(), erased.any(0).sum()
    assert erased.sum() == rows * columns


def mix(key=(0, 1, 0), classes=5, **options):
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % classes
    return (
        pixels.float(),
        labels,
        *BatchMix(AugmentationArguments(**options), classes, 7)(pixels, labels, torch.tensor(key)),
    )


def test_mixup_is_a_convex_sum_with_the_same_weight_for_pixels_and_targets():
    pixels, labels, mixed, targets = mix(mixup_alpha=0.8)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    weight = targets[1, 1]
    assert 0 < weight < 1
    torch.testing.assert_close(mixed, weight * pixels + (1 - weight) * pixels.roll(1, 0))
    torch.testing.assert_close(targets, weight * one_hot + (1 - weight) * one_hot.roll(1, 0))


def test_cutmix_weighs_targets_by_area():
    pixels, labels, mixed, targets = mix(cutmix_alpha=1.0, key=(0, 2, 0))
    own = (mixed == pixels).all(1).float().mean((1, 2))
    assert 0 < own[0] < 1
    torch.testing.assert_close(targets[torch.arange(6), labels], own, atol=0.05, rtol=0)
    assert torch.equal(((mixed == pixels) | (mixed == pixels.roll(1, 0))).all(), torch.tensor(True))


def test_the_first_key_decides_the_mix_and_both_kinds_take_turns():
    both = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    assert torch.equal(mix(**both)[2], mix(**both)[2])
    kinds = set()
    for index in range(20):
        pixels, _, mixed, _ = mix(**both, key=(0, index, 0))
        kinds.add(bool(((mixed == pixels) | (mixed == pixels.roll(1, 0))).all()))
    assert kinds == {True, False}
    pixels, labels, mixed, targets = mix(**both, mixup_prob=0.0)
    assert torch.equal(mixed, pixels) and torch.equal(targets.argmax(-1), labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss_type", "peer"), [("cross_entropy", LabelSmoothingCrossEntropy), ("bce", BinaryCrossEntropy)]
)
def test_losses_of_hard_labels_are_timms(loss_type, peer, smoothing):
    logits, labels = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4
    ours = ClassificationLoss(LossArguments(loss_type=loss_type, label_smoothing_factor=smoothing))
    expected = peer(smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(ours(logits, labels), expected)
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(ours(logits, one_hot), expected)


@pytest.mark.parametrize("side", [8, 9, 224])
def test_quarter_turns_and_vertical_flips_are_torchs(side):
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = ViTImageProcessor(size={"height": side, "width": side})
    keys = [SampleKey(0, 0, repeat) for repeat in range(24)]
    views = TrainTransform(AugmentationArguments(quarter_turns=True), processor, seed=0)([image] * 24, keys)
    turned = [torch.rot90(image, turns, (-2, -1)) for turns in range(4)]
    assert {next(i for i, each in enumerate(turned) if torch.equal(each, view)) for view in views} == {0, 1, 2, 3}
    flipped = TrainTransform(AugmentationArguments(vertical_flip_prob=1.0), processor, seed=0)([image], keys[:1])
    assert torch.equal(flipped[0], image.flip(-2))


def test_quarter_turns_need_squares():
    with pytest.raises(ValueError, match="--quarter_turns needs square images, found 12 x 16 pixels"):
        TrainTransform(AugmentationArguments(quarter_turns=True), PROCESSOR, seed=0)


def test_the_last_epochs_are_not_mixed():
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    arguments = AugmentationArguments(mixup_alpha=0.8, mixup_off_epochs=2)
    mixing, always = BatchMix(arguments, 4, 7, num_epochs=5), BatchMix(AugmentationArguments(mixup_alpha=0.8), 4, 7)
    for epoch in range(5):
        key = torch.tensor([epoch, 1, 0])
        mixed, targets = mixing(pixels, labels, key)
        expected = always(pixels, labels, key) if epoch < 3 else (pixels, torch.eye(4))
        assert torch.equal(mixed, expected[0]) and torch.equal(targets, expected[1])
    for num_epochs, words in (
        (2, "must be below --num_train_epochs 2, found 2"),
        (None, "counts from --num_train"),
    ):
        with pytest.raises(ValueError, match=words):
            BatchMix(arguments, 4, 7, num_epochs)
    with pytest.raises(ValueError, match="--mixup_off_epochs goes with"):
        AugmentationArguments(mixup_off_epochs=1)
