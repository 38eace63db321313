"""Evaluation of models that generate texts, whatever they are given.

Shapes: B batch.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_vit.tasks.task import Batch, Evaluator
from hf_vit.tasks.text_metrics import PerplexityCounter, References, text_metrics, token_statistics

IGNORED = -100  # of labels


@contextlib.contextmanager
def as_loaded(model: Any) -> Iterator[None]:
    """The model as its users load it: without the mixed precision that Accelerate puts around its `forward`, which
    would change the texts, and keep `generate` from its fast path; and with packed weights, as in a pipeline."""
    around = vars(model).pop("forward", None)
    if hasattr(model, "pack_weights"):
        model.pack_weights()
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if around is not None:
            model.forward = around


def forward_pass(model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, maker: Any = None) -> Any:
    """Outputs of the model for inputs whose texts it reads as it should write them.

    Args:
        labels: (B, tokens).
        maker: the model that makes the decoder's input of labels, where `model` is wrapped.
    """
    decoder_input_ids = (maker or model).prepare_decoder_input_ids_from_labels(labels)
    return model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False)


class TextEvaluator(Evaluator):
    """Perplexity, and BLEU, chrF and exact match of what is generated greedily and, where final, by beam search.

    Args:
        tokenizer: of the texts.
        max_length: most tokens that are generated for a text.
        final: measure `num_beams` beams too, and every metric.
        num_samples: how many `save_samples` gives.
        num_hypotheses: keep so many texts of each sample with their scores, at most `num_beams`, of which there must
            be several; none when 0.
        best: the metric that a headline tells.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        final: bool,
        num_beams: int = 1,
        num_samples: int = 0,
        num_hypotheses: int = 0,
        best: str = "bleu",
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.final = final
        self.num_beams = num_beams if final else 1
        self.num_samples = num_samples
        self.num_hypotheses = num_hypotheses
        self.best = best
        self.perplexity = PerplexityCounter()
        self.state = {"perplexity": self.perplexity.state, "index": [], "greedy": []}
        if self.num_beams > 1:
            self.state["beam"] = []  # of each sample, its best text, or (score, text) of the best ones

    @abstractmethod
    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model is given of a batch, by the names of its arguments."""

    @abstractmethod
    def references(self, indices: list[int]) -> References:
        """The texts that samples of the split should have."""

    def step(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Statistics for perplexity and, as token ids, `greedy` (B, tokens), and `beam` (B * hypotheses, tokens) with
        `scores` (B * hypotheses,) where they are kept."""
        inputs = self.inputs(batch)
        result = token_statistics(forward_pass(model, inputs, batch["labels"]).logits, batch["labels"], IGNORED)
        result["greedy"] = self._generate(model, inputs, num_beams=1)
        if self.num_hypotheses:
            options = {"num_return_sequences": self.num_hypotheses, "output_scores": True}
            found = self._generate(model, inputs, self.num_beams, return_dict_in_generate=True, **options)
            result.update(beam=found.sequences[:, 1:], scores=found.sequences_scores)
        elif self.num_beams > 1:
            result["beam"] = self._generate(model, inputs, self.num_beams)
        return result

    def _generate(self, model: Any, inputs: dict[str, Any], num_beams: int, **more: Any) -> Any:
        options: dict[str, Any] = {"num_beams": num_beams, "do_sample": False}
        options.update(max_length=1 + self.max_length, max_new_tokens=None)
        options.update(num_return_sequences=1, return_dict_in_generate=False)  # whatever a checkpoint asks for
        with as_loaded(model):
            generated = model.generate(**inputs, **{**options, **more})
        return generated if more else generated[:, 1:]  # without what the decoder starts with

    def update(self, batch: Batch, outputs: dict[str, torch.Tensor]) -> None:
        found = {name: value.cpu().numpy() for name, value in outputs.items()}
        indices = batch["sample_key"][:, 1].tolist()
        self.perplexity.update(found["log_probability"], found["num_tokens"])
        self.state["index"] += indices
        self.state["greedy"] += self.texts(found["greedy"], indices)
        if self.num_hypotheses:
            repeated = [index for index in indices for _ in range(self.num_hypotheses)]
            texts, scores = self.texts(found["beam"], repeated), found["scores"].tolist()
            rows = list(zip(scores, texts))
            starts = range(0, len(rows), self.num_hypotheses)
            self.state["beam"] += [rows[start : start + self.num_hypotheses] for start in starts]
        elif self.num_beams > 1:
            self.state["beam"] += self.texts(found["beam"], indices)

    def texts(self, token_ids: np.ndarray, indices: list[int]) -> list[str]:
        """What was generated for these samples of the split, from (samples, tokens)."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def generated(self) -> dict[str, list[str]]:
        """The texts that are measured, by what the names of their metrics begin with."""
        found = {"": self.state["greedy"]}
        if self.num_beams > 1:
            best = [each[0][1] if self.num_hypotheses else each for each in self.state["beam"]]
            found[f"beam{self.num_beams}_"] = best
        return found

    def compute(self) -> dict[str, Any]:
        references = self.references(self.state["index"])
        metrics = self.perplexity.compute()
        for prefix, texts in self.generated().items():
            found = text_metrics(texts, references, detailed=self.final)
            if prefix:
                found.pop("signatures", None)
            metrics.update({f"{prefix}{name}": value for name, value in found.items()})
        return metrics

    def headline(self, metrics: Mapping[str, Any]) -> str:
        if self.best == "exact_match":
            return f"exact_match {metrics['exact_match']:.2%}"
        return f"bleu {metrics['bleu']:.2f}, chrf {metrics['chrf']:.2f}"

    def ordered(self) -> np.ndarray:
        """Rows of what was counted, in the split's order."""
        return np.argsort(self.state["index"], kind="stable")
