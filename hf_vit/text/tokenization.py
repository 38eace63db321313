"""Tokenizers of text: trained on the training set, or any existing one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_vit.config import argument, check_range
from hf_vit.files import digest
from hf_vit.models.pipeline_translation import TARGET_TOKENIZER, target_tokenizer_of

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass
class OneTokenizerArguments:
    """Arguments about the tokenizer of a task with texts on one side."""

    _argument_group_name: ClassVar[str] = "Tokenizer"

    tokenizer_name: str | None = argument(
        None, help="An existing tokenizer of the Hub or a folder; the model's own when model_name_or_path is given."
    )
    vocab_size: int = argument(
        8000,
        help="Tokens of the tokenizer that is trained on the texts of the training set when none is given: 3 special "
        "ones, the 256 bytes, and pieces of words.",
    )

    def __post_init__(self) -> None:
        check_range("vocab_size", self.vocab_size, len(_BYTES) + 3)


@dataclass
class TokenizerArguments(OneTokenizerArguments):
    """The same, with texts on two sides, which share a tokenizer unless they are separate."""

    separate_tokenizers: bool = argument(False, help="Train one tokenizer for each of the two languages.")
    target_vocab_size: int | None = argument(
        None, help="Tokens of the target's tokenizer where the two are separate; vocab_size when not given."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("target_vocab_size", self.target_vocab_size, len(_BYTES) + 3)
        if self.target_vocab_size is not None and not self.separate_tokenizers:
            raise ValueError("--target_vocab_size needs --separate_tokenizers")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (arXiv 1508.07909) with one token for each digit: it can write every text, and gives back the
    text it was given up to NFC normalisation. The same texts always give the same tokenizer.

    A text ends with `</s>`; `<s>` starts the decoder.
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


class Tokenizers(NamedTuple):
    """The tokenizers of the source and of the target: one and the same unless they are separate."""

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    def save_pretrained(self, folder: Path) -> None:
        """The source's beside the weights; another one of the target in the folder that the source's names."""
        self.source.save_pretrained(folder)
        if self.target is not self.source:
            self.target.save_pretrained(folder / TARGET_TOKENIZER)

    def describe(self) -> dict[str, Any]:
        """Facts about them for the run's record."""
        named = {"tokenizer": self.source}
        if self.target is not self.source:
            named["target_tokenizer"] = self.target
        return {name: {"size": len(each), "fingerprint": fingerprint(each)} for name, each in named.items()}


def train_tokenizers(source: Sequence[str], target: Sequence[str], arguments: TokenizerArguments) -> Tokenizers:
    """One tokenizer of both languages, or one for each where `arguments` asks for it."""
    if not arguments.separate_tokenizers:
        return Tokenizers(*[train_tokenizer(chain(source, target), arguments.vocab_size)] * 2)
    own = train_tokenizer(source, arguments.vocab_size)
    own.init_kwargs[TARGET_TOKENIZER] = TARGET_TOKENIZER  # which it then is saved with
    return Tokenizers(own, train_tokenizer(target, arguments.target_vocab_size or arguments.vocab_size))


def load_tokenizers(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizers:
    """Existing tokenizers.

    Raises:
        ValueError: one is not there, or has no token for padding or for the end of a text.
    """
    own = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    tokenizers = Tokenizers(own, target_tokenizer_of(own, revision))
    if tokenizers.target is not own:
        own.init_kwargs[TARGET_TOKENIZER] = TARGET_TOKENIZER  # wherever it was, they are saved so
    for tokenizer in tokenizers:
        for token in ("pad_token", "eos_token"):
            if getattr(tokenizer, token) is None:
                raise ValueError(f"--tokenizer_name {name!r} has no {token}")
    return tokenizers


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary, the same on every machine."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return digest([repr(tokens).encode()])[:16]
