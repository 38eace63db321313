"""What an exported model loses on given data: the accuracy of a classifier, BLEU and exact matches of a translator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vit.export.formats import ENDINGS, Function, load
from hf_vit.extras import extra

Generate = Callable[[torch.Tensor, torch.Tensor], list[list[int]]]  # ids and mask (B, T) -> ids of each translation


class Score(NamedTuple):
    """A metric of the original and of what was exported, on so many examples."""

    metric: str
    original: float
    exported: float
    num_examples: int

    def __str__(self) -> str:
        return f"{self.metric} on {self.num_examples:,} examples: {self.original:.4f}, exported {self.exported:.4f}"


class _Exported(nn.Module):
    """An exported classifier in the place of the original."""

    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.function({"pixel_values": pixel_values})[0])


def classifier_scores(source: str, exported: Path, format: str, data: dict[str, str]) -> list[Score]:
    """Accuracies, in [0, 1], on a split of labelled images.

    Args:
        source: the original.
        exported: the folder of what was exported of it.
        format: its format.
        data: flags of `hf-vit score` and their values: `dataset_name`, `split`, `max_eval_samples`, ...

    Raises:
        ValueError: the data cannot be loaded or is of other classes.
    """
    with extra("train"):
        from accelerate import Accelerator

        from hf_vit.tasks.image_classification.task import ImageClassification
        from hf_vit.trainer.evaluation import evaluate
    accelerator = Accelerator(cpu=True)

    def measure(model: nn.Module | None) -> tuple[float, int]:
        assessment = _assessment(ImageClassification, source, data)
        own: Any = assessment.model.eval() if model is None else model
        metrics, num_examples = evaluate(accelerator, own, assessment.loader, assessment.evaluator)
        return metrics["accuracy"], num_examples

    original, num_examples = measure(None)
    found, _ = measure(_Exported(load(exported / f"model{ENDINGS[format]}", format)))
    return [Score("accuracy", original, found, num_examples)]


def translator_scores(source: str, exported: Path, format: str, data: dict[str, str]) -> list[Score]:
    """BLEU, in [0, 100], and the part of exact matches, of greedy translations of a split of pairs of texts; arguments
    and errors as those of [`classifier_scores`]."""
    with extra("train"):
        from hf_vit.tasks.text_metrics import text_metrics
        from hf_vit.tasks.translation.task import Translation
    assessment = _assessment(Translation, source, data)
    evaluator: Any = assessment.evaluator
    model: Any = assessment.model.eval()
    max_length = evaluator.max_length

    def original(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[list[int]]:
        options = {"num_beams": 1, "do_sample": False, "max_new_tokens": max_length, "max_length": None}
        return model.generate(input_ids=input_ids, attention_mask=attention_mask, **options)[:, 1:].tolist()

    if format == "ctranslate2":
        theirs = _ctranslate2(exported, source, max_length)
    else:
        parts = [load(exported / f"{name}{ENDINGS[format]}", format) for name in ("encoder", "decoder")]
        theirs = _greedy(parts[0], parts[1], model, max_length)
    scores, references = [], [pair["target"] for pair in evaluator.pairs]
    for generate in (original, theirs):
        texts = _translations(generate, assessment.loader, evaluator.tokenizer, len(references))
        scores.append(text_metrics(texts, references))
    before, after = scores
    return [Score(name, before[name], after[name], len(references)) for name in ("bleu", "exact_match")]


def _translations(generate: Generate, loader: Iterable[Any], tokenizer: Any, count: int) -> list[str]:
    """The texts in the order of the data, whatever that of its batches."""
    texts = [""] * count
    for batch in loader:
        with torch.inference_mode():
            found = generate(batch["input_ids"], batch["attention_mask"])
        decoded = tokenizer.batch_decode(found, skip_special_tokens=True)
        for index, text in zip(batch["sample_key"][:, 1].tolist(), decoded, strict=True):
            texts[index] = text.strip()
    return texts


def _greedy(encode: Function, decode: Function, model: Any, max_length: int) -> Generate:
    """Greedy generation by the two graphs of an exported translator."""
    config = model.config
    heads, start = config.decoder_attention_heads, config.decoder_start_token_id
    eos = torch.tensor(config.eos_token_id).flatten()

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[list[int]]:
        count = len(input_ids)
        (source,) = encode({"input_ids": input_ids, "attention_mask": attention_mask})
        past = source.new_zeros(config.decoder_layers, 2, count, heads, 0, config.d_model // heads)
        tokens = torch.full((count, 1), start)
        finished = torch.zeros(count, dtype=torch.bool)
        while tokens.shape[1] <= max_length and not finished.all():
            given = {"input_ids": tokens[:, -1:], "attention_mask": attention_mask, "source": source, "past": past}
            logits, past = decode(given)
            last = logits.argmax(-1).masked_fill(finished, config.pad_token_id)
            finished = finished | torch.isin(last, eos)
            tokens = torch.cat([tokens, last[:, None]], 1)
        return tokens[:, 1:].tolist()

    return generate


def _ctranslate2(exported: Path, source: str, max_length: int) -> Generate:
    with extra("export"):
        from ctranslate2 import Translator

    from hf_vit.text.tokenization import load_tokenizers

    tokenizers, translator = load_tokenizers(source), Translator(str(exported), device="cpu")
    target: Any = tokenizers.target

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[list[int]]:
        texts = [
            tokenizers.source.convert_ids_to_tokens(ids[mask.bool()].tolist())
            for ids, mask in zip(input_ids, attention_mask)
        ]
        found = translator.translate_batch(texts, beam_size=1, max_decoding_length=max_length)
        return [target.convert_tokens_to_ids(each.hypotheses[0]) for each in found]

    return generate


def _assessment(task: Any, source: str, data: dict[str, str]) -> Any:
    with extra("train"):
        from hf_vit.config import parse_groups
        from hf_vit.score import ScoreArguments
    groups = {"score": ScoreArguments, **task.scoring_groups}
    words = [f"--model_name_or_path={source}", *(f"--{name}={value}" for name, value in data.items())]
    parsed = parse_groups(list(groups.values()), words, "Measures a model.")
    return task.assess(SimpleNamespace(**dict(zip(groups, parsed))))


__all__ = ["Score", "classifier_scores", "translator_scores"]
