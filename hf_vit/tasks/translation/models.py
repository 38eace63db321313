"""The model to train on text, with the vocabulary of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_vit.config import Options, argument
from hf_vit.tasks.models import check_convert, check_fields, checkpoint
from hf_vit.text.tokenization import Tokenizers


@dataclass
class TextModelArguments:
    _argument_group_name: ClassVar[str] = "Model"
    # What a recipe says of another architecture does not fit the one that is named instead.
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "model_name_or_path": ("config_name", "model_type", "config_overrides"),
        "model_type": ("config_name", "model_name_or_path", "config_overrides"),
        "config_name": ("model_name_or_path", "model_type"),
    }

    model_name_or_path: str | None = argument(
        None, help="Start from this checkpoint: any that AutoModelForSeq2SeqLM loads."
    )
    model_revision: str | None = argument(None, help="Branch, tag or commit of model_name_or_path.")
    convert: bool = argument(
        False, help="Make a checkpoint of transformers a model of this package, so that all its options apply."
    )
    trust_remote_code: bool = argument(False, help="Allow the code that a checkpoint brings along.")
    model_type: str = argument("hf_transformer", help="From scratch: the architecture, a model type of transformers.")
    config_name: str | None = argument(None, help="From scratch: a config of the Hub or a folder.")
    config_overrides: Options = argument(Options, help="Fields of the model's config: a=b,c=d or JSON.")

    def __post_init__(self) -> None:
        check_convert(self)
        if self.model_name_or_path is not None and self.config_name is not None:
            raise ValueError("--config_name is for training from scratch, it does not go with --model_name_or_path")


def build_text_model(
    arguments: TextModelArguments, tokenizers: Tokenizers, label_smoothing: float | None
) -> PreTrainedModel:
    """A model for the tokenizers, from a checkpoint or from scratch; a config that has a field for it keeps the label
    smoothing.

    Raises:
        ValueError: an unknown architecture or config field, one that cannot be trained on pairs of texts, fewer tokens
            in the model than in the tokenizer or other special ones, or two tokenizers for an architecture with one
            vocabulary.
    """
    overrides = dict(arguments.config_overrides)
    options: dict[str, Any] = {"trust_remote_code": arguments.trust_remote_code}
    name: Any = arguments.config_name
    revision = arguments.model_revision
    if arguments.model_name_or_path is not None:
        name, revision = checkpoint(arguments)
    if name is None:
        make_config = partial(AutoConfig.for_model, arguments.model_type)
    else:
        make_config = partial(AutoConfig.from_pretrained, name, revision=revision, **options)
    default = make_config()
    check_fields(overrides, default, is_checkpoint=arguments.model_name_or_path is not None)
    if label_smoothing is not None and hasattr(default, "label_smoothing"):
        overrides.setdefault("label_smoothing", label_smoothing)
    if arguments.model_name_or_path is not None:
        options["revision"] = revision
        model = AutoModelForSeq2SeqLM.from_pretrained(name, **options, **overrides)
    else:
        config = make_config(**{**_vocabulary(tokenizers, default), **overrides})
        model = AutoModelForSeq2SeqLM.from_config(config, **options)
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise ValueError(
            f"a {default.model_type} model does not say what its decoder reads in training "
            "(prepare_decoder_input_ids_from_labels): choose another --model_name_or_path or --model_type"
        )
    _check_vocabulary(model, tokenizers)
    return model


def _vocabulary(tokenizers: Tokenizers, config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a config that say which tokens there are."""
    source, target = tokenizers
    start = target.pad_token_id if target.bos_token_id is None else target.bos_token_id
    # Where the decoder's size has a field of its own, as in Marian, `vocab_size` is the encoder's.
    shared = source if hasattr(config, "decoder_vocab_size") else target
    sizes = {"vocab_size": shared, "encoder_vocab_size": source, "decoder_vocab_size": target}
    fields = {name: len(tokenizer) for name, tokenizer in sizes.items() if hasattr(config, name)}
    if source is not target:
        if not hasattr(config, "share_encoder_decoder_embeddings"):
            raise ValueError(f"a {config.model_type} model has one vocabulary: it takes no --separate_tokenizers")
        fields["share_encoder_decoder_embeddings"] = False
    return {
        **fields,
        "pad_token_id": target.pad_token_id,
        "bos_token_id": target.bos_token_id,
        "eos_token_id": target.eos_token_id,
        "decoder_start_token_id": start,
    }


def _check_vocabulary(model: PreTrainedModel, tokenizers: Tokenizers) -> None:
    sizes = {
        "encoder": (model.get_input_embeddings().num_embeddings, tokenizers.source),
        "output": (model.get_output_embeddings().weight.shape[0], tokenizers.target),
    }
    for part, (size, tokenizer) in sizes.items():
        if size < len(tokenizer):
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model's {part} only {size}: give the model at least "
                "as many (--config_overrides, vocab_size and encoder_vocab_size where there is one), or the tokenizer "
                "it was made with (--tokenizer_name)"
            )
    for name in ("pad_token_id", "eos_token_id"):
        own, wanted = getattr(model.config, name), getattr(tokenizers.target, name)
        if own is not None and wanted not in (own if isinstance(own, list) else [own]):
            raise ValueError(
                f"the tokenizer's {name} is {wanted}, the model's {own}: use the tokenizer that the model was made "
                "with (--tokenizer_name)"
            )
