"""The pipeline that travels with a model that writes texts of images: transformers 5 has none of its own."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.image_utils import load_image
from transformers.pipelines.base import Pipeline

# Without a limit of the user's or of the model's, transformers would stop after 20 tokens.
_MAX_NEW_TOKENS = 256
_LIMITS = {"max_length", "max_new_tokens", "generation_config", "stopping_criteria"}


class ImageToTextPipeline(Pipeline):
    """Write the text of images: `pipeline("image-to-text", model=folder_or_id, trust_remote_code=True)`.

    An image (of Pillow, or a path or address of one) gives `[{"generated_text": ...}]`, a list of images gives such a
    list for each; with `num_return_sequences` above 1 there are as many texts in it. Images are those of pipelines in
    general: three channels of 8 bits, or what the image processor makes of them.

    On a CPU the weights of a model in eval mode are packed when the pipeline is made (see `pack_weights` of
    [`HfViTForImageToText`]): it is faster, and whatever changes a weight unpacks it.

    Arguments of the call:
        batch_size: images read at a time.
        timeout: seconds to wait for an image of an address.
        generate_kwargs: arguments of `generate`; they may also be given by their own names, for instance `num_beams`
            or `max_new_tokens`.

    Raises:
        ValueError: if the tokenizer has tokens that the model lacks.
    """

    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    model: Any
    tokenizer: Any
    image_processor: Any
    _registered_impl: Any
    # Arguments of `generate` reach it through `_sanitize_parameters`.
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size = self.model.get_output_embeddings().out_features
        if len(self.tokenizer) > size:
            raise ValueError(f"tokenizer must have at most the model's {size} tokens, got {len(self.tokenizer)}")
        if hasattr(self.model, "pack_weights") and not self.model.training:
            self.model.pack_weights()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(
        self, timeout: float | None = None, generate_kwargs: dict | None = None, **options: Any
    ) -> tuple[dict, dict, dict]:
        options = {**(generate_kwargs or {}), **options}
        if options.get("max_new_tokens") is not None:
            options.setdefault("max_length", None)  # the model's own limit, of which transformers would warn
        return {} if timeout is None else {"timeout": timeout}, options, {}

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:  # type: ignore[override]  # its own parameters
        return dict(self.image_processor(load_image(image, timeout=timeout), return_tensors="pt"))

    def _forward(self, input_tensors: dict, **forward_parameters: Any) -> Any:
        pixel_values = input_tensors["pixel_values"].to(self.model.dtype)
        limits = self.model.generation_config
        if not forward_parameters.keys() & _LIMITS and limits.max_new_tokens is None and limits.max_length is None:
            forward_parameters["max_new_tokens"] = self._max_new_tokens()
        output_ids = self.model.generate(pixel_values=pixel_values, **forward_parameters)
        if not isinstance(output_ids, torch.Tensor):
            output_ids = output_ids.sequences
        return {"output_ids": output_ids.unflatten(0, (len(pixel_values), -1))}

    def _max_new_tokens(self) -> int:
        text = self.model.config.get_text_config(decoder=True)
        if getattr(text, "position_embedding", None) != "learned":
            return _MAX_NEW_TOKENS
        return min(_MAX_NEW_TOKENS, text.max_position_embeddings - 1)

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> list[dict[str, str]]:
        texts = self.tokenizer.batch_decode(model_outputs["output_ids"][0], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]


# `save_pretrained` reads it and writes this file and its entry in the configuration again.
ImageToTextPipeline._registered_impl = {
    "image-to-text": {"impl": ImageToTextPipeline, "pt": (AutoModelForImageTextToText,)}
}

__all__ = ["ImageToTextPipeline"]
