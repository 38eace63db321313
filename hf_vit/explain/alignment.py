"""Which tokens of the source a translator looked at for each token that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Alignment:
    """Tokens of the source and of the translation, its end among them, and the `weights` (target, source) of each of
    the latter on the former; its rows sum to one."""

    source: list[str]
    target: list[str]
    weights: torch.Tensor


@torch.no_grad()
def alignment(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    translation: str,
    target_tokenizer: Any = None,
    layer: int = -1,
) -> Alignment:
    """Attention of the decoder to the source, mean over the heads of one layer, where the model writes a translation.

    Args:
        model: an encoder-decoder model.
        translation: any: the model's own, or another's.
        target_tokenizer: of the translation; `tokenizer` when None.
        layer: of the decoder; the last one by default.

    Raises:
        ValueError: the text is empty, or there is no such layer.
    """
    if not text.strip():
        raise ValueError("text must not be empty")
    num_layers: int = getattr(model.config, "decoder_layers", model.config.num_hidden_layers)
    if not -num_layers <= layer < num_layers:
        raise ValueError(f"layer must be the index of one of {num_layers} layers, got {layer}")
    writer = tokenizer if target_tokenizer is None else target_tokenizer
    source = tokenizer(text, return_tensors="pt")
    row = _with_end(writer(text_target=translation)["input_ids"], model.generation_config)
    weights = _cross_attentions(model, {**source, "labels": torch.tensor([row])})[layer][0].float().mean(0)
    return Alignment(_words(tokenizer, source["input_ids"][0].tolist()), _words(writer, row), weights)


def _cross_attentions(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The decoder's attention to the source, (1, heads, target, source) of each layer. Models of transformers have it
    of the eager implementation alone."""
    options = {"output_attentions": True, "return_dict": True}
    found = model(**inputs, **options).cross_attentions
    if found and found[0] is not None:
        return found
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(**inputs, **options).cross_attentions
    finally:
        model.set_attn_implementation(own)


def _with_end(row: list[int], generation_config: Any) -> list[int]:
    ends = generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return row if ends[0] is None or (row[-1:] and row[-1] in ends) else [*row, ends[0]]


def _words(tokenizer: Any, ids: list[int]) -> list[str]:
    return [tokenizer.decode([token]).strip() or "␣" for token in ids]


__all__ = ["Alignment", "alignment"]
