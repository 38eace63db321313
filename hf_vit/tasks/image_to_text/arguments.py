"""The arguments of image to text. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import Options, argument, check_range
from hf_vit.source_arguments import SourceArguments
from hf_vit.tasks.generation_arguments import GenerationArguments
from hf_vit.text.tokenization import OneTokenizerArguments
from hf_vit.trainer.arguments import TrainingArguments

# What a model's own image processor says.
CANVAS = ("image_size", "letterbox", "image_mean", "image_std")


@dataclass
class ImageTextDataArguments(SourceArguments):
    dataset_name: str | None = argument(
        None, help="A dataset of the Hub or a local folder with images and texts, or `digit_strings`, drawn strips."
    )
    image_column_name: str | None = argument(None, help="Column of images; found when not given.")
    text_column_name: str | None = argument(
        None, help="Column of texts, or of lists of texts of which each is right; found when not given."
    )
    test_split_name: str = argument("test", help="The split of dataset_name that the result is measured on.")
    max_target_length: int = argument(128, help="Tokens of a text: training images with longer ones are left out.")
    random_shift: int = argument(0, help="Pixels of the canvas by which training images are moved at random, at most.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset_name is None:
            raise ValueError("--dataset_name is required: a dataset with a column of images and one of texts")
        check_range("max_target_length", self.max_target_length, 1)
        check_range("random_shift", self.random_shift, 0)


@dataclass
class ReaderArguments:
    _argument_group_name: ClassVar[str] = "Model"
    # What a recipe says of another architecture does not fit the one that is named instead.
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "model_name_or_path": ("encoder_name_or_path", "encoder_overrides", "decoder_overrides", *CANVAS),
        "encoder_name_or_path": ("encoder_overrides", "model_name_or_path", "image_size", "image_mean", "image_std"),
    }

    model_name_or_path: str | None = argument(
        None, help="Start from this model of image to text, a folder or an id of the Hub."
    )
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    trust_remote_code: bool = argument(False, help="Allow the code that a checkpoint brings along.")
    encoder_name_or_path: str | None = argument(
        None, help="Start the encoder from this Vision Transformer of ours, a classifier for instance."
    )
    encoder_overrides: Options = argument(
        Options, help="Fields of the encoder's config, a Vision Transformer: a=b,c=d or JSON."
    )
    decoder_overrides: Options = argument(
        Options, help="Fields of the decoder's config, a Transformer: a=b,c=d or JSON."
    )
    image_size: list[int] | None = argument(
        None, help="Height and width of the canvas that images are brought to; the encoder's own when not given."
    )
    letterbox: bool = argument(False, help="Keep the aspect of each image and pad it, instead of squeezing it.")
    image_mean: list[float] | None = argument(
        None,
        help="Mean per channel, of pixels in [0, 1]; the encoder's own, or 0.5. Letterboxes are filled with it.",
    )
    image_std: list[float] | None = argument(None, help="Standard deviation per channel; the encoder's own, or 0.5.")
    gradient_checkpointing: bool = argument(False, help="Recompute activations to save memory.")

    def __post_init__(self) -> None:
        if self.model_name_or_path is not None:
            for name in ("encoder_name_or_path", *CANVAS):
                if getattr(self, name):
                    raise ValueError(f"--{name} does not go with --model_name_or_path, whose own is kept")
            if "image_size" in self.encoder_overrides:
                raise ValueError(
                    "image_size of --encoder_overrides does not go with --model_name_or_path, whose own is kept"
                )
        if self.image_size is not None and len(self.image_size) > 2:
            raise ValueError(f"--image_size takes one or two numbers, found {self.image_size}")
        for side in self.image_size or []:
            check_range("image_size", side, 1)
        for value in self.image_std or []:
            check_range("image_std", value, 0, open_low=True)


@dataclass(kw_only=True)
class ImageToTextArguments(TrainingArguments):
    data: ImageTextDataArguments
    tokenizer: OneTokenizerArguments
    model: ReaderArguments
    generation: GenerationArguments
