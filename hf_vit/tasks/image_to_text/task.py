"""Image to text: captions or transcriptions, cross entropy of tokens, BLEU, chrF and exact match of what it writes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit.models.image_processing_hf_vit import HfViTImageProcessor
from hf_vit.models.losses import token_loss
from hf_vit.tasks.generation import forward_pass
from hf_vit.tasks.generation_arguments import ScoredGenerationArguments
from hf_vit.tasks.image_to_text.arguments import ImageTextDataArguments, ImageToTextArguments
from hf_vit.tasks.image_to_text.data import (
    ImageTexts,
    ImageTextViews,
    collate,
    encode,
    load_image_text_split,
    load_image_texts,
)
from hf_vit.tasks.image_to_text.evaluation import ImageToTextEvaluator
from hf_vit.tasks.image_to_text.models import build_processor, build_reader
from hf_vit.tasks.task import Assessment, Batch, StepOutput, Task, data_loader
from hf_vit.text.tokenization import Tokenizers, load_tokenizers, train_tokenizer
from hf_vit.trainer.sampler import EpochBatchSampler
from hf_vit.vision.decoding import decode
from hf_vit.vision.processors import normalize

logger = logging.getLogger(__name__)

_LOOKED_AT = 256  # images whose aspect is compared with the canvas'
_NARROWED = 0.99


class ImageToText(Task):
    """The task `image_to_text`."""

    name = "image_to_text"
    scoring_groups: ClassVar = {"data": ImageTextDataArguments, "generation": ScoredGenerationArguments}
    sample_unit = "images"
    arguments: ImageToTextArguments
    data: ImageTexts
    processor: HfViTImageProcessor

    def __init__(self, arguments: ImageToTextArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        generation = arguments.generation
        self.best = (generation.metric_for_best_model, "max")
        self.data = load_image_texts(arguments.data, self.seed)
        self.tokenizer = self._tokenizer()
        self.labels = self._encode()
        set_seed(self.seed)
        self.model = build_reader(arguments.model, self.tokenizer, generation.label_smoothing_factor)
        self.processor = build_processor(arguments.model, self.model.config)
        defaults: Any = self.model.generation_config
        if generation.num_beams is not None:
            defaults.num_beams = generation.num_beams
        if defaults.max_length is None and defaults.max_new_tokens is None:
            defaults.max_length = 1 + generation.generation_max_length  # with what the decoder starts with
        self.num_beams = defaults.num_beams or 1
        longest = {split: max(len(each[0]) for each in self.labels[split]) for split in self.evaluation_splits}
        check_positions(
            self.model,
            **{f"texts of the {split} split": length for split, length in longest.items()},
            **{"--max_target_length": min(arguments.data.max_target_length, self._longest_label)},
            **{"--generation_max_length": generation.generation_max_length},
        )

    @property
    def _longest_label(self) -> int:
        return max(len(text) for each in self.labels["train"] for text in each)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        own, model = self.arguments.tokenizer, self.arguments.model
        name = own.tokenizer_name or model.model_name_or_path
        if name is not None:
            revision = None if own.tokenizer_name else model.model_revision
            loaded = load_tokenizers(name, revision=revision, trust_remote_code=model.trust_remote_code)
            return loaded.target
        texts = [text for each in self.data.splits["train"]["texts"] for text in each]
        return train_tokenizer(texts, own.vocab_size)

    def _encode(self) -> dict[str, list[list[list[int]]]]:
        """Token ids of all texts; training texts that are too long are left out, and images with no other."""
        most = self.arguments.data.max_target_length
        labels = {split: encode(rows["texts"], self.tokenizer) for split, rows in self.data.splits.items()}
        short = [[ids for ids in each if len(ids) <= most] for each in labels["train"]]
        kept = [index for index, each in enumerate(short) if each]
        if not kept:
            shortest = min(len(ids) for each in labels["train"] for ids in each)
            raise ValueError(
                f"--max_target_length {most} leaves no training image; the shortest text has {shortest} tokens"
            )
        self.data.count("train", "text_too_long", len(short) - len(kept))
        self.data.splits["train"] = self.data.splits["train"].select(kept)
        return {**labels, "train": [short[index] for index in kept]}

    def plan_rows(self) -> dict[str, str]:
        height, width = self.processor.size["height"], self.processor.size["width"]
        fits = "padded" if self.processor.crop_mode == "border" else "stretched"
        rows = {"canvas": f"{height} x {width} pixels, {fits}"}
        if found := self.data.summary():
            rows["left out"] = ". ".join(found)
        if narrowed := self._narrowed(width / height):
            rows["wide images"] = (
                f"{narrowed:.0%} of the training images are wider than the canvas for their height: what they show is "
                f"{'smaller' if fits == 'padded' else 'narrower'} in it than their height would allow"
            )
        return rows

    def _narrowed(self, aspect: float) -> float:
        """The part of evenly spaced training images that are wider than the canvas of this aspect."""
        split = self.data.splits["train"]
        spaced = np.unique(np.linspace(0, len(split) - 1, _LOOKED_AT).astype(int)).tolist()
        sizes = [decode(split[index]["image"], index).size for index in spaced]
        return float(np.mean([width / height * _NARROWED > aspect for width, height in sizes]))

    def _views(self, split: str, *, train: bool) -> ImageTextViews:
        shift = self.arguments.data.random_shift if train else None
        return ImageTextViews(self.data.splits[split], self.labels[split], self.processor, shift, self.seed)

    def train_loader(self, batches_per_step: int) -> DataLoader:
        views = self._views("train", train=True)
        size = self.arguments.optimization.per_device_train_batch_size
        sampler = EpochBatchSampler(len(views), size, batches_per_step, seed=self.seed)
        return data_loader(views, self.arguments.data, batch_sampler=sampler, collate_fn=collate)

    def evaluation_loader(self, split: str) -> DataLoader:
        size = self.arguments.optimization.per_device_eval_batch_size
        return data_loader(self._views(split, train=False), self.arguments.data, batch_size=size, collate_fn=collate)

    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        """Mean loss of the batch's tokens."""
        inputs = {"pixel_values": normalize(batch["pixel_values"], self.processor)}
        logits = forward_pass(model, inputs, batch["labels"], self.model).logits
        smoothing = self.model.config.text_config.label_smoothing
        return StepOutput(token_loss(logits, batch["labels"], label_smoothing=smoothing))

    def evaluator(self, split: str, *, final: bool) -> ImageToTextEvaluator:
        return ImageToTextEvaluator(
            self.data.splits[split],
            self.processor,
            self.tokenizer,
            self.arguments.generation.generation_max_length,
            final=final,
            num_beams=self.num_beams,
            num_samples=self.arguments.data.card_num_samples,
            best=self.best[0],
        )

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        score, generation = arguments.score, arguments.generation
        name = score.model_name_or_path
        origin: dict[str, Any] = {"revision": score.model_revision, "trust_remote_code": score.trust_remote_code}
        model = AutoModelForImageTextToText.from_pretrained(name, **origin)
        processor = AutoImageProcessor.from_pretrained(name, **origin)
        tokenizer = load_tokenizers(name, **origin).target
        defaults = model.generation_config
        own_limit = defaults.max_new_tokens or (defaults.max_length and defaults.max_length - 1) or 128
        data = load_image_text_split(arguments.data, score.split)
        split = data.splits[score.split]
        evaluator = ImageToTextEvaluator(
            split,
            processor,
            tokenizer,
            generation.generation_max_length or own_limit,
            final=True,
            num_beams=generation.num_beams or defaults.num_beams or 1,
        )
        views = ImageTextViews(split, encode(split["texts"], tokenizer), processor)
        loader = data_loader(views, arguments.data, batch_size=score.per_device_eval_batch_size, collate_fn=collate)
        return Assessment(model, loader, evaluator, data.describe())

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["model"].update(Tokenizers(self.tokenizer, self.tokenizer).describe())
        for split, info in described["data"]["splits"].items():
            lengths = [len(text) for each in self.labels[split] for text in each]
            info["mean_tokens"] = float(np.mean(lengths))
        return described

    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code, processor and tokenizer."""
        model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import pipeline\n"
            f'reader = pipeline("image-to-text", model="{folder}", trust_remote_code=True)'
        )


def check_positions(model: PreTrainedModel, **lengths: int) -> None:
    """Raise `ValueError` where the decoder has a table of fewer positions than a text may have tokens.

    Args:
        lengths: tokens by what has them.
    """
    text: Any = model.config.text_config
    if text.position_embedding != "learned":
        return
    for name, length in lengths.items():
        if length > text.max_position_embeddings:
            raise ValueError(
                f"{name} must have at most the decoder's max_position_embeddings ({text.max_position_embeddings}) "
                f"tokens, found {length}"
            )
