"""Translation: pairs of texts, any AutoModelForSeq2SeqLM, cross entropy of tokens, BLEU of what it generates."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from hf_vit.models.losses import token_loss
from hf_vit.tasks.task import Task
from hf_vit.tasks.translation.arguments import TranslationArguments
from hf_vit.tasks.translation.data import IGNORED, Collator, TextPairs, load_parallel_texts
from hf_vit.tasks.translation.metrics import perplexity, text_metrics, token_statistics
from hf_vit.tasks.translation.models import build_text_model
from hf_vit.text.tokenization import Tokenizers, load_tokenizers, train_tokenizers
from hf_vit.trainer.sampler import EpochBatchSampler, TokenBatchSampler

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _as_loaded(model: torch.nn.Module) -> Iterator[None]:
    """The model as its users load it: without the mixed precision that Accelerate puts around its `forward`, which
    would change the texts, and keep `generate` from its fast path."""
    around = vars(model).pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if around is not None:
            model.forward = around


class Translation(Task):
    """The task `translation`; `training.loop` says what a task offers."""

    name = "translation"
    sample_unit = "sentences"

    def __init__(self, arguments: TranslationArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        self.best_metric = arguments.generation.metric_for_best_model
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
        self._check_positions()
        if self._trains_tokenizers:
            self.tokenizers.source.model_max_length = arguments.data.max_source_length

    @property
    def _trains_tokenizers(self) -> bool:
        return self.arguments.tokenizer.tokenizer_name is None and self.arguments.model.model_name_or_path is None

    def _tokenizers(self) -> Tokenizers:
        own, model = self.arguments.tokenizer, self.arguments.model
        name = own.tokenizer_name or model.model_name_or_path
        if not self._trains_tokenizers:
            if own.separate_tokenizers:
                raise ValueError(
                    f"--separate_tokenizers is for tokenizers that are trained, but {name!r} brings its own: give "
                    "--config_name instead of --model_name_or_path to train both anew"
                )
            revision = model.model_revision if own.tokenizer_name is None else None
            return load_tokenizers(name, revision=revision, trust_remote_code=model.trust_remote_code)
        train = self.data.splits["train"]
        return train_tokenizers(train["source"], train["target"], own)

    def _check_positions(self) -> None:
        # Ours have no limit but with `learned`; others that state a limit have a table of so many rows.
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is None or getattr(self.model.config, "position_embedding", "learned") != "learned":
            return
        lengths = {
            "max_source_length": self.arguments.data.max_source_length,
            "max_target_length": self.arguments.data.max_target_length,
            "generation_max_length": self.arguments.generation.generation_max_length,
        }
        for name, length in lengths.items():
            if length > positions:
                raise ValueError(
                    f"--{name} must be at most the model's max_position_embeddings ({positions}), found {length}"
                )
        for split in set(self.evaluation_splits):
            longest = int(self.pairs[split].lengths[:, 1].max())
            if longest > positions:
                raise ValueError(
                    f"targets of the {split} split must have at most the model's max_position_embeddings "
                    f"({positions}) tokens, found {longest}"
                )

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
            sampler = TokenBatchSampler(pairs.lengths, max_tokens, batches_per_step, seed=self.seed)
        else:
            batch_size = self.arguments.optimization.per_device_train_batch_size
            sampler = EpochBatchSampler(len(pairs), batch_size, batches_per_step, seed=self.seed)
        return self.data_loader(pairs, batch_sampler=sampler, collate_fn=Collator(self.tokenizers.source.pad_token_id))

    def evaluation_loader(self, split: str) -> DataLoader:
        """Batches of texts of like length, the longest first: generation stops when the last text of a batch ends."""
        pairs = self.pairs[split]
        order = np.argsort(-pairs.lengths[:, 0], kind="stable").tolist()
        return self.data_loader(
            pairs,
            sampler=order,
            batch_size=self.arguments.optimization.per_device_eval_batch_size,
            collate_fn=Collator(self.tokenizers.source.pad_token_id),
        )

    def _outputs(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]):
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(batch["labels"]),
            use_cache=False,
        )

    def training_step(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """`loss`, the mean over the batch's tokens, and the model's `outputs`. The batches of one step, of several
        processes or accumulated, count alike, however many tokens they have."""
        outputs = self._outputs(model, batch)
        smoothing = getattr(self.model.config, "label_smoothing", self.arguments.generation.label_smoothing_factor)
        smoothing = smoothing or 0.0
        return {"loss": token_loss(outputs.logits, batch["labels"], label_smoothing=smoothing), "outputs": outputs}

    def evaluation_step(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], *, detailed: bool = False
    ) -> dict[str, torch.Tensor]:
        """What `compute_metrics` needs of each sample, first dimension B.

        `generated` and, with `detailed` and several beams, `beam_generated` are token ids (B, generation_max_length).
        """
        result = token_statistics(self._outputs(model, batch).logits, batch["labels"], IGNORED)
        result["index"] = batch["sample_key"][:, 1]
        result["generated"] = self._generate(model, batch, num_beams=1)
        if detailed and self.num_beams > 1:
            result["beam_generated"] = self._generate(model, batch, self.num_beams)
        return result

    def _generate(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], num_beams: int) -> torch.Tensor:
        length = self.arguments.generation.generation_max_length
        options = {"num_beams": num_beams, "do_sample": False, "max_length": 1 + length, "max_new_tokens": None}
        options.update(num_return_sequences=1, return_dict_in_generate=False)  # whatever a checkpoint asks for
        with _as_loaded(model):
            generated = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options
            )[:, 1:]  # without what the decoder starts with
        missing = length - generated.shape[1]
        return torch.nn.functional.pad(generated, (0, missing), value=self.tokenizers.target.pad_token_id)

    def _texts(self, gathered: Mapping[str, np.ndarray], split: str, name: str = "generated") -> list[str]:
        """The generated texts; that of an empty source is empty, as in the translation pipeline."""
        texts = self.tokenizers.target.batch_decode(gathered[name], skip_special_tokens=True)
        sources = self.data.splits[split]["source"]
        return [text.strip() if sources[int(i)] else "" for text, i in zip(texts, gathered["index"])]

    def compute_metrics(self, gathered: dict[str, np.ndarray], *, detailed: bool) -> dict[str, Any]:
        split = self.evaluation_splits[1 if detailed else 0]
        targets = self.data.splits[split]["target"]
        references = [targets[int(index)] for index in gathered["index"]]
        metrics = perplexity(gathered["log_probability"], gathered["num_tokens"])
        metrics.update(text_metrics(self._texts(gathered, split), references, detailed=detailed))
        if "beam_generated" in gathered:
            by_beam = text_metrics(self._texts(gathered, split, "beam_generated"), references, detailed=True)
            del by_beam["signatures"]
            prefix = f"beam{self.num_beams}"
            metrics.update({f"{prefix}_{name}": value for name, value in by_beam.items()})
        return metrics

    def headline(self, metrics: Mapping[str, Any]) -> str:
        if self.best_metric == "exact_match":
            return super().headline(metrics)
        return f"bleu {metrics['bleu']:.2f}, chrf {metrics['chrf']:.2f}"

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["model"].update(self.tokenizers.describe())
        for split, info in described["data"]["splits"].items():
            info["mean_tokens"] = [float(mean) for mean in self.pairs[split].lengths.mean(axis=0)]
        return described

    def save_pretrained(self, model: torch.nn.Module, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code and the tokenizers."""
        model.save_pretrained(folder, state_dict=state_dict)
        self.tokenizers.save_pretrained(folder)

    def save_samples(self, gathered: dict[str, np.ndarray], split: str, folder: Path) -> list[dict[str, Any]]:
        """Evenly spaced texts of an evaluated split, with what the model made of them."""
        index = gathered["index"]
        rows = np.argsort(index)[np.linspace(0, len(index) - 1, self.arguments.data.card_num_samples).astype(int)]
        predictions = self._texts({name: values[rows] for name, values in gathered.items()}, split)
        dataset = self.data.splits[split]
        return [{**dataset[int(index[row])], "prediction": prediction} for row, prediction in zip(rows, predictions)]

    def loading_lines(self, folder: Path) -> str:
        """The lines of Python that load what `save_pretrained` wrote."""
        return (
            "from transformers import pipeline\n"
            f'translator = pipeline("translation", model="{folder}", trust_remote_code=True)'
        )
