"""Translation on the command line: a text, or lines as they come, each token shown as soon as it is known."""

from collections.abc import Iterable
from typing import Any

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TextStreamer

from hf_vit.fingerprint import check_fingerprint
from hf_vit.models.pipeline_translation import TranslationPipeline
from hf_vit.unasked import unasked


@unasked()
def load_translator(model: str, revision: str | None = None) -> TranslationPipeline:
    """The pipeline of a model of the Hub or of a folder. Runs no code of it: the classes are this package's, or
    transformers' own.

    Raises:
        ValueError: the folder is not as its record says, or needs code of its own.
    """
    check_fingerprint(model)
    return TranslationPipeline(
        model=AutoModelForSeq2SeqLM.from_pretrained(model, revision=revision, trust_remote_code=False),
        tokenizer=AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False),
    )


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
