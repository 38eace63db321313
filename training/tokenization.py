"""Tokenizers of text: trained on the training set, or any existing one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.arguments import argument, check_range

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass
class TokenizerArguments:
    _argument_group_name: ClassVar[str] = "Tokenizer"
    key: ClassVar[str] = "tokenizer"

    tokenizer_name: str | None = argument(
        None, help="An existing tokenizer of the Hub or a folder; the model's own when model_name_or_path is given."
    )
    tokenizer_type: str = argument(
        "bpe", help="What is trained on both languages of the training set.", choices=("bpe", "unigram")
    )
    vocab_size: int = argument(8000, help="Tokens of a trained tokenizer: the 256 bytes, 3 special ones, and pieces.")

    def __post_init__(self):
        check_range("vocab_size", self.vocab_size, len(_BYTES) + 3)


def train_tokenizer(
    texts: Iterable[str], tokenizer_type: str = "bpe", vocab_size: int = 8000
) -> PreTrainedTokenizerFast:
    """A tokenizer of pieces of words (BPE, arXiv 1508.07909, or a unigram model, 1804.10959) over bytes, one token
    for each digit. It can write every text, and gives back the text it was given up to NFC normalisation.

    Source and target share it: `texts` should hold both. A text ends with `</s>`; `<s>` starts the decoder.
    """
    special = [PAD, BOS, EOS]
    options = {"vocab_size": vocab_size, "special_tokens": special, "initial_alphabet": _BYTES, "show_progress": False}
    if tokenizer_type == "bpe":
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
    else:
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(**options)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """An existing tokenizer.

    Raises:
        ValueError: it has no token for padding or for the end of a text.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    for token in ("pad_token", "eos_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(f"--tokenizer_name {name!r} has no {token}")
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary, the same on every machine."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]
