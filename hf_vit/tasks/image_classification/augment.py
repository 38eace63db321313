"""From decoded images to views of them: torchvision v2 on uint8 tensors, seeded by the sample's key.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import ViTImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping

from hf_vit.config import argument, check_range
from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor
from hf_vit.sample_keys import SampleKey, seed_of
from hf_vit.vision.processors import InputFormat

AUTO_AUGMENTS = (
    *("randaugment", "trivialaugment", "autoaugment_imagenet", "autoaugment_cifar10"),
    *("three_augment", "augmix"),
)
_FLIPS = ["horizontal_flip_prob", "vertical_flip_prob"]
_AFFINE = ["affine_degrees", "affine_translate", "affine_scale", "affine_shear"]
TRAIN_CROPS = ("resize", "random_resized_crop", "simple_random_crop", "random_crop")


@dataclass
class AugmentationArguments:
    _argument_group_name: ClassVar[str] = "Augmentation"

    train_crop: str = argument(
        "resize",
        help="How a training image comes to its size: squeezed whole; a random part of random shape; the short side "
        "resized, then a random square (DeiT III); squeezed whole, padded by crop_padding and cut.",
        choices=TRAIN_CROPS,
    )
    crop_scale: list[float] = argument(
        lambda: [0.08, 1.0], help="random_resized_crop: smallest and largest part of the image's area."
    )
    crop_ratio: list[float] = argument(lambda: [3 / 4, 4 / 3], help="random_resized_crop: range of width / height.")
    crop_padding: int = argument(4, help="simple_random_crop and random_crop: pixels added on each side, reflected.")
    horizontal_flip_prob: float = argument(0.0, help="Probability of a horizontal flip.")
    vertical_flip_prob: float = argument(0.0, help="Probability of a vertical flip.")
    quarter_turns: bool = argument(False, help="Turn images by 0, 90, 180 or 270 degrees at random; they are square.")
    affine_degrees: float = argument(0.0, help="Random rotation by up to this many degrees.")
    affine_translate: float = argument(0.0, help="Random shift by up to this part of each side.")
    affine_scale: float = argument(0.0, help="Random zoom by a factor of up to 1 -/+ this.")
    affine_shear: float = argument(0.0, help="Random shear by up to this many degrees.")
    auto_augment: str | None = argument(None, help="A policy of several operations.", choices=AUTO_AUGMENTS)
    randaugment_num_ops: int = argument(2, help="randaugment: operations on each image.")
    randaugment_magnitude: int = argument(9, help="randaugment: their strength, 0 to 30.")
    color_jitter: float = argument(0.0, help="Strength of random brightness, contrast and saturation.")
    random_erasing_prob: float = argument(0.0, help="Probability of a rectangle being replaced by the mean colour.")
    repeated_augmentation: int = argument(1, help="Views of each image in an epoch, met in the same step.")
    mixup_alpha: float = argument(0.0, help="MixUp with weights from Beta(alpha, alpha).")
    cutmix_alpha: float = argument(0.0, help="CutMix with areas from Beta(alpha, alpha); beside MixUp, one at random.")
    mixup_prob: float = argument(1.0, help="Probability that a batch is mixed, by MixUp or CutMix.")
    mixup_switch_prob: float = argument(0.5, help="Probability of CutMix where both are on.")
    mixup_off_epochs: int = argument(0, help="Neither MixUp nor CutMix in so many epochs at the end.")

    def __post_init__(self) -> None:
        for name in (*_FLIPS, "random_erasing_prob", "mixup_prob", "mixup_switch_prob"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("affine_degrees", self.affine_degrees, 0, 180)
        check_range("affine_translate", self.affine_translate, 0, 1)
        check_range("affine_scale", self.affine_scale, 0, 0.99)
        check_range("affine_shear", self.affine_shear, 0, 90)
        check_range("randaugment_num_ops", self.randaugment_num_ops, 1)
        check_range("randaugment_magnitude", self.randaugment_magnitude, 0, 30)
        check_range("repeated_augmentation", self.repeated_augmentation, 1)
        check_range("mixup_off_epochs", self.mixup_off_epochs, 0)
        if self.mixup_off_epochs and not (self.mixup_alpha or self.cutmix_alpha):
            raise ValueError("--mixup_off_epochs goes with --mixup_alpha or --cutmix_alpha")
        for name in ("crop_padding", "color_jitter", "mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0)
        for name, high in (("crop_scale", 1.0), ("crop_ratio", float("inf"))):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= high:
                raise ValueError(f"--{name} takes two rising numbers > 0 and <= {high}, found {bounds}")

    @property
    def random_parts(self) -> list[str]:
        """The arguments that make an image's views differ from each other."""
        names = [*_FLIPS, "quarter_turns", *_AFFINE]
        names += ["auto_augment", "color_jitter", "random_erasing_prob", "mixup_alpha", "cutmix_alpha"]
        return ["train_crop"] * (self.train_crop != "resize") + [name for name in names if getattr(self, name)]

    @property
    def moves_unseen(self) -> bool:
        """Whether a policy turns or shifts images in ways of its own."""
        return self.auto_augment not in (None, "three_augment")

    def describe(self) -> str:
        """The augmentation in a few words, by the arguments that make it."""
        parts = [self.train_crop.replace("_", " ")]
        if self.train_crop == "random_resized_crop":
            parts[0] += f" of {self.crop_scale[0]:g} to {self.crop_scale[1]:g} of the area"
        if self.auto_augment:
            parts.append(self.auto_augment)
        if self.quarter_turns:
            parts.append("quarter turns")
        others = [*_FLIPS, "random_erasing_prob", "color_jitter", "mixup_alpha", "cutmix_alpha", *_AFFINE]
        for name in others:
            if value := getattr(self, name):
                parts.append(f"{name.removesuffix('_prob').removesuffix('_alpha').replace('_', ' ')} {value:g}")
        if self.repeated_augmentation > 1:
            parts.append(f"{self.repeated_augmentation} views of each image")
        return ", ".join(parts)


class TrainTransform:
    """Decoded images and their keys to views (3, H, W) uint8; key and seed decide the view in any process.

    Args:
        processor: gives the size, the resampling and the mean colour that erasing fills in.
        seed: the run's.
    """

    def __init__(
        self, arguments: AugmentationArguments, processor: ViTImageProcessor | HfViTImageProcessor, seed: int
    ):
        self.seed = seed
        form = InputFormat.of(processor)
        size, interpolation = form.size, pil_torch_interpolation_mapping[form.resample]
        moves: list[torch.nn.Module] = _crop(arguments, size, interpolation)
        if arguments.horizontal_flip_prob:
            moves.append(v2.RandomHorizontalFlip(arguments.horizontal_flip_prob))
        if arguments.vertical_flip_prob:
            moves.append(v2.RandomVerticalFlip(arguments.vertical_flip_prob))
        if arguments.quarter_turns:
            if size[0] != size[1]:
                raise ValueError(f"--quarter_turns needs square images, found {size[0]} x {size[1]} pixels")
            turns = [v2.RandomRotation((degrees, degrees)) for degrees in (90, 180, 270)]
            moves.append(v2.RandomChoice([v2.Identity(), *turns]))
        moves += _affine(arguments)
        steps: list[torch.nn.Module] = _auto_augment(arguments, size, form.num_channels)
        if arguments.color_jitter:
            steps.append(v2.ColorJitter(*[arguments.color_jitter] * 3))
        if arguments.random_erasing_prob:
            mean_color = [255 * mean for mean in form.mean]
            steps.append(v2.RandomErasing(arguments.random_erasing_prob, value=mean_color))
        self.move, self.change = v2.Compose(moves), v2.Compose(steps) if steps else None

    def __call__(self, images: Sequence[torch.Tensor], keys: Sequence[SampleKey]) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            return [self._view(key, image)[0] for image, key in zip(images, keys)]

    def with_positions(
        self, images: Sequence[torch.Tensor], keys: Sequence[SampleKey]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same views, each with what its pixels show: (3, H, W), the height and width in its image, in parts of
        its sides, and 1 where it shows the image, 0 beyond."""
        with torch.random.fork_rng(devices=[]):
            views = [self._view(key, tv_tensors.Image(image), _positions(image)) for image, key in zip(images, keys)]
        # What lies beyond counts as zero where pixels are mixed.
        return [(view.as_subclass(torch.Tensor), _unmixed(shown)) for view, shown in views]

    def _view(self, key: SampleKey, image: torch.Tensor, *beside: torch.Tensor) -> list[torch.Tensor]:
        """The image and what moves with it."""
        torch.default_generator.manual_seed(seed_of(self.seed, *key))
        moved = self.move(image, *beside)
        image, *others = moved if beside else (moved,)
        return [self.change(image) if self.change else image, *others]


def _positions(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    rows, columns = (torch.arange(side) + 0.5 for side in (height, width))
    grid = torch.meshgrid(rows / height, columns / width, indexing="ij")
    return tv_tensors.Image(torch.stack((*grid, torch.ones(height, width))))


def _unmixed(shown: torch.Tensor) -> torch.Tensor:
    shown = shown.as_subclass(torch.Tensor)
    return torch.cat((shown[:2] / shown[2:].clamp(min=1e-3), shown[2:]))


def _crop(arguments: AugmentationArguments, size: tuple[int, int], interpolation: Any) -> list[torch.nn.Module]:
    kind, padding = arguments.train_crop, arguments.crop_padding
    if kind == "random_resized_crop":
        scale, ratio = tuple(arguments.crop_scale), tuple(arguments.crop_ratio)
        return [v2.RandomResizedCrop(size, scale, ratio, interpolation=interpolation, antialias=True)]
    whole = kind != "simple_random_crop"
    resize = v2.Resize(size if whole else max(size), interpolation=interpolation, antialias=True)
    if kind == "resize":
        return [resize]
    return [resize, v2.RandomCrop(size, padding=padding or None, padding_mode="reflect")]


def _affine(arguments: AugmentationArguments) -> list[torch.nn.Module]:
    degrees, shift = arguments.affine_degrees, arguments.affine_translate
    if not any((degrees, shift, arguments.affine_scale, arguments.affine_shear)):
        return []
    scale = (1 - arguments.affine_scale, 1 + arguments.affine_scale)
    shear = arguments.affine_shear or None
    return [v2.RandomAffine(degrees, (shift, shift), scale, shear, interpolation=v2.InterpolationMode.BILINEAR)]


def _auto_augment(arguments: AugmentationArguments, size: tuple[int, int], num_channels: int) -> list[torch.nn.Module]:
    name = arguments.auto_augment
    if name is None:
        return []
    if name == "randaugment":
        return [v2.RandAugment(arguments.randaugment_num_ops, arguments.randaugment_magnitude)]
    if name == "trivialaugment":
        return [v2.TrivialAugmentWide()]
    if name == "augmix":
        return [v2.AugMix()]
    if name == "three_augment":
        # DeiT III (arXiv 2204.07118); the blur's kernel covers its largest sigma and fits the reflected border.
        kernel = min(13, 2 * (min(size) // 2) - 1)
        blur = v2.GaussianBlur(kernel, sigma=(0.1, 2.0))
        return [v2.RandomChoice([v2.Grayscale(num_channels), v2.RandomSolarize(128, p=1.0), blur])]
    return [v2.AutoAugment(v2.AutoAugmentPolicy(name.removeprefix("autoaugment_")))]


class BatchMix:
    """MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch with itself, rolled by one.

    Args:
        num_classes: width of the targets.
        seed: the run's.
        num_epochs: of the run, to leave the last ones unmixed where that is asked for.

    Raises:
        ValueError: no epoch is left to mix in, or the number of epochs does not decide.
    """

    def __init__(self, arguments: AugmentationArguments, num_classes: int, seed: int, num_epochs: int | None = None):
        self.seed = seed
        self.num_classes = num_classes
        self.probability = arguments.mixup_prob
        self.end = float("inf")  # the first epoch without
        if arguments.mixup_off_epochs:
            if num_epochs is None:
                raise ValueError("--mixup_off_epochs counts from --num_train_epochs, not from --max_train_steps")
            self.end = num_epochs - arguments.mixup_off_epochs
            if self.end < 1:
                raise ValueError(
                    f"--mixup_off_epochs must be below --num_train_epochs {num_epochs}, found "
                    f"{arguments.mixup_off_epochs}"
                )
        mixup, cutmix = arguments.mixup_alpha, arguments.cutmix_alpha
        self.mixes: list[torch.nn.Module] = []
        self.weights: list[float] = []
        if mixup:
            self.mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
            self.weights.append(1 - arguments.mixup_switch_prob if cutmix else 1.0)
        if cutmix:
            self.mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
            self.weights.append(arguments.mixup_switch_prob if mixup else 1.0)

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor, key: torch.Tensor) -> Any:
        """Return float pixels (B, channels, height, width) mixed on the same scale, and targets (B, C).

        Args:
            labels: class indices (B,), or 1 and 0 of each class (B, C).
            key: the key of the batch's first sample (3,), which decides the mix.
        """
        pixels = pixels.float()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, *key.tolist()))
            if not self.mixes or key[0] >= self.end or torch.rand(()) >= self.probability:
                targets = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, self.num_classes)
                return pixels, targets.float()
            chosen = int(torch.multinomial(torch.tensor(self.weights), 1))
            return self.mixes[chosen](pixels, labels.float() if labels.ndim == 2 else labels)


class EvaluationTransform:
    """Steps of the processor up to its normalisation, which `normalize` does once per batch."""

    def __init__(self, processor: ViTImageProcessor | HfViTImageProcessor):
        self.processor = processor

    def __call__(self, images: Sequence[torch.Tensor], keys: Sequence[SampleKey]) -> torch.Tensor:
        return self.processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
