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
    vocab_size: int = argument(
        8000,
        help="Tokens of the tokenizer that is trained on both languages of the training set when none is given: 3 "
        "special ones, the 256 bytes, and pieces of words.",
    )

    def __post_init__(self):
        check_range("vocab_size", self.vocab_size, len(_BYTES) + 3)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (arXiv 1508.07909) with one token for each digit: it can write every text, and gives back the
    text it was given up to NFC normalisation. The same texts always give the same tokenizer.

    Source and target share it: `texts` should hold both. A text ends with `</s>`; `<s>` starts the decoder.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, BOS, EOS], initial_alphabet=_BYTES, show_progress=False
    )
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
