"""Translation: pairs of texts, any AutoModelForSeq2SeqLM, cross entropy of tokens, BLEU of what it generates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel

from hf_vit.models.losses import token_loss
from hf_vit.tasks.generation import forward_pass
from hf_vit.tasks.models import checkpoint
from hf_vit.tasks.task import Assessment, Batch, StepOutput, Task, data_loader
from hf_vit.tasks.translation.arguments import (
    ScoredTextArguments,
    ScoredTranslationArguments,
    TextDataArguments,
    TranslationArguments,
)
from hf_vit.tasks.translation.data import Collator, ParallelTexts, TextPairs, load_parallel_split, load_parallel_texts
from hf_vit.tasks.translation.evaluation import TranslationEvaluator
from hf_vit.tasks.translation.models import TextModelArguments, build_text_model
from hf_vit.text.tokenization import Tokenizers, load_tokenizers, train_tokenizers
from hf_vit.trainer.sampler import EpochBatchSampler, TokenBatchSampler

logger = logging.getLogger(__name__)


class Translation(Task):
    """The task `translation`."""

    name = "translation"
    scoring_groups: ClassVar = {"data": ScoredTextArguments, "generation": ScoredTranslationArguments}
    sample_unit = "sentences"
    arguments: TranslationArguments
    data: ParallelTexts

    def __init__(self, arguments: TranslationArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        self.best = (arguments.generation.metric_for_best_model, "max")
        self.data = load_parallel_texts(arguments.data, self.seed)
        self.tokenizers = self._tokenizers()
        set_seed(self.seed)
        self.model = build_text_model(arguments.model, self.tokenizers, arguments.generation.label_smoothing_factor)
        defaults = self.model.generation_config
        if arguments.generation.num_beams is not None:
            defaults.num_beams = arguments.generation.num_beams
        if defaults.max_length is None and defaults.max_new_tokens is None:
            defaults.max_length = 1 + arguments.generation.generation_max_length  # with what the decoder starts with
        self.num_beams = defaults.num_beams or 1
        self.pairs = {split: self._encode(split) for split in self.data.splits}
        check_positions(
            self.model,
            {split: self.pairs[split] for split in self.evaluation_splits},
            max_source_length=arguments.data.max_source_length,
            max_target_length=arguments.data.max_target_length,
            generation_max_length=arguments.generation.generation_max_length,
        )
        if self._trains_tokenizers:
            self.tokenizers.source.model_max_length = arguments.data.max_source_length

    @property
    def _trains_tokenizers(self) -> bool:
        return self.arguments.tokenizer.tokenizer_name is None and self.arguments.model.model_name_or_path is None

    def _tokenizers(self) -> Tokenizers:
        own, model = self.arguments.tokenizer, self.arguments.model
        name: Any = own.tokenizer_name
        revision = None
        if name is None and model.model_name_or_path is not None:
            name, revision = checkpoint(model)
        if not self._trains_tokenizers:
            if own.separate_tokenizers:
                raise ValueError(
                    f"--separate_tokenizers is for tokenizers that are trained, but {name!r} brings its own: give "
                    "--config_name instead of --model_name_or_path to train both anew"
                )
            return load_tokenizers(name, revision=revision, trust_remote_code=model.trust_remote_code)
        train = self.data.splits["train"]
        return train_tokenizers(train["source"], train["target"], own)

    def _encode(self, split: str) -> TextPairs:
        """The split as tokens; training pairs that are too long are left out."""
        data = self.arguments.data
        if split != "train":
            return TextPairs(self.data.splits[split], self.tokenizers, data.max_source_length)
        pairs = TextPairs(self.data.splits[split], self.tokenizers)
        fits = (pairs.lengths <= (data.max_source_length, data.max_target_length)).all(axis=1)
        if not fits.any():
            raise ValueError(
                f"--max_source_length {data.max_source_length} and --max_target_length {data.max_target_length} "
                f"leave no training pair; the shortest have {pairs.lengths.min(axis=0).tolist()} tokens"
            )
        self.data.left_out["too_long"] = int((~fits).sum())
        if any(self.data.left_out.values()):
            reasons = ", ".join(f"{count:,} {name}" for name, count in self.data.left_out.items() if count)
            logger.info(f"training pairs left out: {reasons}")
        return pairs.select(np.flatnonzero(fits))

    def train_loader(self, batches_per_step: int) -> DataLoader:
        """Batches for all processes in order, by tokens or by pairs."""
        pairs, max_tokens = self.pairs["train"], self.arguments.data.max_tokens_per_batch
        if max_tokens is not None:
            sampler: Sampler = TokenBatchSampler(pairs.lengths, max_tokens, batches_per_step, seed=self.seed)
        else:
            batch_size = self.arguments.optimization.per_device_train_batch_size
            sampler = EpochBatchSampler(len(pairs), batch_size, batches_per_step, seed=self.seed)
        collate = Collator(self.tokenizers.source.pad_token_id)
        return data_loader(pairs, self.arguments.data, batch_sampler=sampler, collate_fn=collate)

    def evaluation_loader(self, split: str) -> DataLoader:
        size = self.arguments.optimization.per_device_eval_batch_size
        return evaluation_loader(self.pairs[split], self.tokenizers, self.arguments.data, size)

    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        """Mean loss of the batch's tokens. The batches of one step, of several processes or accumulated, count alike,
        however many tokens they have."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = forward_pass(model, inputs, batch["labels"], self.model).logits
        smoothing = getattr(self.model.config, "label_smoothing", self.arguments.generation.label_smoothing_factor)
        return StepOutput(token_loss(logits, batch["labels"], label_smoothing=smoothing or 0.0))

    def evaluator(self, split: str, *, final: bool) -> TranslationEvaluator:
        return TranslationEvaluator(
            self.data.splits[split],
            self.tokenizers.target,
            self.arguments.generation.generation_max_length,
            final=final,
            num_beams=self.num_beams,
            num_samples=self.arguments.data.card_num_samples,
            best=self.best[0],
        )

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        score, generation = arguments.score, arguments.generation
        origin = {"revision": score.model_revision, "trust_remote_code": score.trust_remote_code}
        tokenizers = load_tokenizers(score.model_name_or_path, **origin)
        chosen = TextModelArguments(
            model_name_or_path=score.model_name_or_path,
            model_revision=score.model_revision,
            trust_remote_code=score.trust_remote_code,
        )
        model = build_text_model(chosen, tokenizers, label_smoothing=None)
        num_beams = generation.num_beams or model.generation_config.num_beams or 1
        if generation.num_hypotheses and not 1 < num_beams >= generation.num_hypotheses:
            raise ValueError(
                f"--num_hypotheses needs at least 2 beams, and as many as it is, found --num_beams {num_beams} for "
                f"{generation.num_hypotheses}"
            )
        defaults = model.generation_config
        own_limit = defaults.max_new_tokens or (defaults.max_length and defaults.max_length - 1) or 128
        max_length = generation.generation_max_length or own_limit
        data = load_parallel_split(arguments.data, score.split)
        pairs = TextPairs(data.splits[score.split], tokenizers, arguments.data.max_source_length)
        check_positions(
            model,
            {score.split: pairs},
            max_source_length=arguments.data.max_source_length,
            generation_max_length=max_length,
        )
        evaluator = TranslationEvaluator(
            data.splits[score.split],
            tokenizers.target,
            max_length,
            final=True,
            num_beams=num_beams,
            num_hypotheses=generation.num_hypotheses,
            by_length=True,
        )
        loader = evaluation_loader(pairs, tokenizers, arguments.data, score.per_device_eval_batch_size)
        return Assessment(model, loader, evaluator, data.describe())

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["model"].update(self.tokenizers.describe())
        for split, info in described["data"]["splits"].items():
            info["mean_tokens"] = [float(mean) for mean in self.pairs[split].lengths.mean(axis=0)]
        return described

    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code and the tokenizers."""
        model.save_pretrained(folder, state_dict=state_dict)
        self.tokenizers.save_pretrained(folder)

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import pipeline\n"
            f'translator = pipeline("translation", model="{folder}", trust_remote_code=True)'
        )


def evaluation_loader(
    pairs: TextPairs, tokenizers: Tokenizers, arguments: TextDataArguments, batch_size: int
) -> DataLoader:
    """Batches of texts of like length, the longest first: generation stops when the last text of a batch ends."""
    order = np.argsort(-pairs.lengths[:, 0], kind="stable").tolist()
    collate = Collator(tokenizers.source.pad_token_id)
    return data_loader(pairs, arguments, sampler=order, batch_size=batch_size, collate_fn=collate)


def check_positions(model: PreTrainedModel, evaluated: Mapping[str, TextPairs], **lengths: int) -> None:
    """Raise `ValueError` where a model has fewer positions than texts may have tokens.

    Args:
        evaluated: the splits whose targets the model reads whole.
        lengths: limits of a text's tokens by their arguments.
    """
    # Ours have no limit but with `learned`; others that state a limit have a table of so many rows.
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or getattr(model.config, "position_embedding", "learned") != "learned":
        return
    for name, length in lengths.items():
        if length > positions:
            raise ValueError(
                f"--{name} must be at most the model's max_position_embeddings ({positions}), found {length}"
            )
    for split, pairs in evaluated.items():
        longest = int(pairs.lengths[:, 1].max())
        if longest > positions:
            raise ValueError(
                f"targets of the {split} split must have at most the model's max_position_embeddings "
                f"({positions}) tokens, found {longest}"
            )
