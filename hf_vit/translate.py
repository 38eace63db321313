"""Translation on the command line: a text, or lines as they come, each token shown as soon as it is known."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TextStreamer

from hf_vit.fingerprint import check_fingerprint
from hf_vit.models.pipeline_translation import TranslationPipeline
from hf_vit.unasked import unasked


@unasked()
def load_translator(model: str, revision: str | None = None) -> TranslationPipeline:
    """The pipeline of a model of the Hub or of a folder. Runs no code of it: the classes are this package's, or
    transformers' own.

    Raises:
        ValueError: the model does not translate, its folder is not as its record says, or it needs code of its own.
    """
    check_fingerprint(model)
    try:
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model, revision=revision, trust_remote_code=False)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"model must be a translator, {model!r} is another kind of model") from None
    return TranslationPipeline(
        model=loaded,
        tokenizer=AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False),
    )


def scores_of(translator: TranslationPipeline, text: str, translations: Sequence[str]) -> list[float]:
    """The geometric mean of the probabilities of each translation's tokens, its end among them, in (0, 1]; 1 of an
    empty text's empty translation."""
    if not text.strip():
        return [1.0 for _ in translations]
    tokenizer: Any = translator.target_tokenizer
    rows = [tokenizer(text_target=each)["input_ids"] for each in translations]
    eos = translator.model.generation_config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    rows = [row if eos is None or row[-1:] == [eos] else [*row, eos] for row in rows]
    source = translator.tokenizer(text, return_tensors="pt")
    scores = []
    for row in rows:
        labels = torch.tensor([row])  # (1, T)
        with torch.inference_mode():
            logits = translator.model(**source, labels=labels).logits[0].float()
        chances = logits.log_softmax(-1).gather(1, labels[0][:, None])
        scores.append(float(chances.mean().exp()))
    return scores


def print_translations(translator: TranslationPipeline, texts: Iterable[str], **generate_kwargs: Any) -> None:
    """Prints each text's translation on a line; with one beam token by token, while the model writes it.

    Args:
        generate_kwargs: as for the pipeline; `num_beams` is the model's own unless given.
    """
    num_beams = generate_kwargs.setdefault("num_beams", translator.model.generation_config.num_beams or 1)
    for text in texts:
        if num_beams > 1 or not text.strip():
            print(translator(text, **generate_kwargs)[0]["translation_text"], flush=True)
        else:
            streamer = TextStreamer(translator.target_tokenizer, skip_prompt=True, skip_special_tokens=True)
            translator(text, streamer=streamer, **generate_kwargs)
