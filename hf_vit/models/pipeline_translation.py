"""The pipeline that travels with a translation model: transformers 5 has none of its own."""

import os
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines.base import Pipeline
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

# Without a limit of the user's or of the model's, transformers would stop after 20 tokens.
_MAX_NEW_TOKENS = 256

# The field of a tokenizer's configuration that names the folder beside it with the tokenizer of the target language.
TARGET_TOKENIZER = "target_tokenizer"


def target_tokenizer_of(tokenizer: Any, revision: str | None = None) -> Any:
    """The tokenizer of the texts that a model writes: `tokenizer` itself, unless it names another one beside it.

    Args:
        revision: of the repository that `tokenizer` came from.

    Raises:
        ValueError: if the one it names cannot be loaded.
    """
    folder, name = tokenizer.init_kwargs.get(TARGET_TOKENIZER), tokenizer.name_or_path
    if folder is None:
        return tokenizer
    options = {"subfolder": folder, "revision": revision}
    try:
        cached_file(name, "tokenizer_config.json", **options)  # without it there would be an empty tokenizer
    except OSError as error:
        raise ValueError(
            f"tokenizer: {folder!r} of {name!r}, the tokenizer of the target language, cannot be loaded "
            f"(save_pretrained of the pipeline saves it with the rest, that of model or tokenizer does not): {error}"
        ) from error
    return AutoTokenizer.from_pretrained(name, **options)


class TranslationPipeline(Pipeline):
    """Translate texts: `pipeline("translation", model=folder_or_id, trust_remote_code=True)`.

    A text gives `[{"translation_text": ...}]`, a list of texts gives one `{"translation_text": ...}` for each; with
    `num_return_sequences` above 1, each text gives a list of that many. An empty text gives an empty translation.

    On a CPU the weights of a model in eval mode are packed when the pipeline is made (see `pack_weights` of
    `HfTransformerForConditionalGeneration`): translation is faster, and whatever changes a weight unpacks it.

    Arguments of the call:
        truncation: cut texts to the tokenizer's `model_max_length`; longer ones are else translated whole, with a
            warning.
        batch_size: texts translated at a time.
        Any argument of `generate`, for instance `num_beams` or `max_new_tokens`.

    Args:
        target_tokenizer: of the texts that the model writes; the one `tokenizer` names when not given, or itself.

    Raises:
        ValueError: if a tokenizer has tokens that the model lacks, or an input is not a text.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    tokenizer: Any
    model: Any
    _registered_impl: Any
    # Arguments of `generate` reach it through `_sanitize_parameters`.
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, target_tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if target_tokenizer is None:
            is_beside = self.tokenizer.name_or_path == self.model.name_or_path
            revision = getattr(self.model.config, "_commit_hash", None) if is_beside else None
            target_tokenizer = target_tokenizer_of(self.tokenizer, revision)
        self.target_tokenizer = target_tokenizer
        self._check_size("tokenizer", self.model.get_input_embeddings().weight.shape[0])
        if self._has_two_tokenizers:
            self._check_size("target_tokenizer", self.model.get_output_embeddings().out_features)
        if hasattr(self.model, "pack_weights") and not self.model.training:
            self.model.pack_weights()

    @property
    def _has_two_tokenizers(self) -> bool:
        return self.target_tokenizer is not self.tokenizer

    def _check_size(self, name: str, size: int) -> None:
        if len(getattr(self, name)) > size:
            raise ValueError(f"{name} must have at most the model's {size} tokens, got {len(getattr(self, name))}")

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Model, code and tokenizers, see `Pipeline.save_pretrained`.

        Raises:
            ValueError: if a pipeline with two tokenizers is to be pushed, which would leave one behind.
        """
        if self._has_two_tokenizers:
            if kwargs.get("push_to_hub"):
                raise ValueError("push_to_hub must be False with two tokenizers: save, then upload the folder")
            folder = self.tokenizer.init_kwargs.setdefault(TARGET_TOKENIZER, TARGET_TOKENIZER)
            self.target_tokenizer.save_pretrained(os.path.join(save_directory, folder))
        super().save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, list) and not inputs:
            return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def _sanitize_parameters(self, truncation: bool | None = None, **generate_kwargs: Any) -> Any:
        if generate_kwargs.get("max_new_tokens") is not None:
            generate_kwargs.setdefault("max_length", None)  # the model's own limit, of which transformers would warn
        return {} if truncation is None else {"truncation": truncation}, generate_kwargs, {}

    def preprocess(self, text: str, truncation: bool = False) -> dict:  # type: ignore[override]  # its own parameters
        if not isinstance(text, str):
            raise ValueError(f"inputs must be a text or a list of texts, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"inputs must be texts of valid Unicode, got {text[:100]!r}: {error}") from error
        encoding = self.tokenizer(text, truncation=truncation, verbose=False)
        length, limit = len(encoding["input_ids"]), self.tokenizer.model_max_length
        if length > limit:
            logger.warning(
                f"a text has {length} tokens, more than the model was made for ({limit}): its translation may be "
                "poor; split it, or cut it by truncation=True"
            )
        # Some tokenizers make nothing of an empty text, and the model needs a token.
        padding = self.tokenizer.pad_token_id
        input_ids = encoding["input_ids"] or [self.model.config.pad_token_id if padding is None else padding]
        input_ids = torch.tensor([input_ids])  # (1, N)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "is_empty": not text.strip()}

    def _forward(self, input_tensors: dict, **generate_kwargs: Any) -> Any:
        is_empty = input_tensors.pop("is_empty")
        has_limit = generate_kwargs.keys() & {"max_length", "max_new_tokens", "generation_config", "stopping_criteria"}
        limits = self.model.generation_config
        if not has_limit and limits.max_new_tokens is None and limits.max_length is None:
            generate_kwargs["max_new_tokens"] = self._max_new_tokens()
        output_ids = self.model.generate(**input_tensors, **generate_kwargs)
        if not isinstance(output_ids, torch.Tensor):
            output_ids = output_ids.sequences
        batch_size = input_tensors["input_ids"].shape[0]
        return {"output_ids": output_ids.unflatten(0, (batch_size, -1)), "is_empty": is_empty}

    def _max_new_tokens(self) -> int:
        if getattr(self.model.config, "position_embedding", None) != "learned":
            return _MAX_NEW_TOKENS
        return min(_MAX_NEW_TOKENS, self.model.config.max_position_embeddings - 1)

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> list[dict[str, str]]:
        texts = self.target_tokenizer.batch_decode(model_outputs["output_ids"][0], skip_special_tokens=True)
        return [{"translation_text": "" if model_outputs["is_empty"] else text.strip()} for text in texts]


# `save_pretrained` reads it and writes this file and its entry in the configuration again.
TranslationPipeline._registered_impl = {"translation": {"impl": TranslationPipeline, "pt": (AutoModelForSeq2SeqLM,)}}

__all__ = ["TranslationPipeline"]
