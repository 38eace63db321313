"""The arguments of translation. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import argument, check_range
from hf_vit.source_arguments import SourceArguments
from hf_vit.tasks.generation_arguments import GenerationArguments, ScoredGenerationArguments
from hf_vit.tasks.translation.models import TextModelArguments
from hf_vit.text.tokenization import TokenizerArguments
from hf_vit.trainer.arguments import TrainingArguments


@dataclass
class TextDataArguments(SourceArguments):
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "dataset_name": ("train_file", "validation_file", "test_file"),
        "train_file": ("dataset_name", "dataset_config_name", "dataset_revision"),
    }

    dataset_name: str | None = argument(
        None, help="A dataset of the Hub, a local folder (JSON lines, parquet, saved to disk) or `dates`."
    )
    train_file: list[str] | None = argument(
        None,
        help="Instead of dataset_name: a file of JSON lines, CSV or TSV with the languages as its columns, or two "
        "parallel text files, source and target; any of them may be compressed by gzip.",
    )
    validation_file: list[str] | None = argument(None, help="The same for validation.")
    test_file: list[str] | None = argument(None, help="The same for the final evaluation.")
    test_split_name: str = argument("test", help="The split of dataset_name that the result is measured on.")
    source_lang: str | None = argument(None, help="Language to translate from, as the data names it.")
    target_lang: str | None = argument(None, help="Language to translate to, as the data names it.")
    max_source_length: int = argument(
        128, help="Tokens of a source: longer training pairs are left out, longer sources in evaluation are cut."
    )
    max_target_length: int = argument(128, help="Tokens of a target: training pairs with longer ones are left out.")
    max_length_ratio: float | None = argument(
        None, help="Leave training pairs out of which one side has more than so many times the other's characters."
    )
    drop_duplicates: bool = argument(False, help="Keep the first of training pairs that are the same.")
    max_tokens_per_batch: int | None = argument(
        None,
        help="Source and target tokens, padding included, of one process in one training batch of pairs of like "
        "length; when not given, batches have per_device_train_batch_size pairs.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_origin()
        for name in ("source_lang", "target_lang"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name} is needed: the language's name in the data")
        if self.source_lang == self.target_lang:
            raise ValueError(f"--source_lang and --target_lang are both {self.source_lang!r}")
        for split, files in self.files.items():
            if len(files) > 2:
                raise ValueError(
                    f"--{split}_file takes one file of JSON lines, CSV or TSV, or two of text, found {len(files)}"
                )
        for name in ("max_source_length", "max_target_length", "max_tokens_per_batch", "max_length_ratio"):
            check_range(name, getattr(self, name), 1)

    def _check_origin(self) -> None:
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError("give either --dataset_name or --train_file")
        for split in self.files:
            if self.train_file is None:
                raise ValueError(f"--{split}_file goes with --train_file")

    @property
    def files(self) -> dict[str, list[str]]:
        """The files of each split that has some."""
        found = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: files for split, files in found.items() if files}


@dataclass
class ScoredTextArguments(TextDataArguments):
    """The same for one split of them, which needs no others."""

    def _check_origin(self) -> None:
        if (self.dataset_name is None) == (not self.files):
            raise ValueError("give either --dataset_name or files, such as --test_file")


@dataclass
class ScoredTranslationArguments(ScoredGenerationArguments):
    num_hypotheses: int = argument(
        0, help="Keep so many translations of each text with their scores in predictions.jsonl, at most num_beams."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_hypotheses", self.num_hypotheses, 0)


@dataclass(kw_only=True)
class TranslationArguments(TrainingArguments):
    data: TextDataArguments
    tokenizer: TokenizerArguments
    model: TextModelArguments
    generation: GenerationArguments
