"""`generate` of transformers that takes the cache under either name and never goes on without it."""

from typing import Any

import torch
from transformers.generation import GenerationMixin

from .cache_argument import CACHE_NAME, check_mask, with_cache_name
from .tested_versions import tested_with
from .text_position import text_position_ids

# Arguments of `generate` that its loops hand to every step, though no model reads them.
_OF_GENERATE = ("tokenizer", "assistant_tokenizer")


class CheckedGenerationMixin(GenerationMixin):
    """See `transformers.GenerationMixin`. Each step is looked at before the model takes it: whatever tokens of the
    text are left out must be in the cache."""

    config: Any

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See `GenerationMixin.generate`.

        Raises:
            ValueError: if an argument is not known, or a step would be taken without the steps before it.
        """
        return super().generate(*args, **with_cache_name(kwargs))

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict:
        """See `GenerationMixin.prepare_inputs_for_generation`. A translator is told its tokens' positions, so that
        its decoder too can tell if the cache is lost on the way.

        Raises:
            ValueError: if tokens are left out that the cache does not hold.
        """
        for name in _OF_GENERATE:
            kwargs.pop(name, None)
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        model_inputs = super().prepare_inputs_for_generation(input_ids, **with_cache_name(kwargs))
        prefix = "decoder_" if self.config.is_encoder_decoder else ""
        given = model_inputs.get(f"{prefix}input_ids")
        if given is None:
            return model_inputs
        cache = model_inputs.get(CACHE_NAME)
        past_length = 0 if cache is None else cache.get_seq_length()
        num_left_out = input_ids.shape[1] - given.shape[1]
        # The length of a static cache is a tensor: looking at it on another device would wait for the device.
        is_known = isinstance(past_length, int) or past_length.device.type == "cpu"
        if self.config.decoder_layers == 0:  # nothing is kept of what came before
            past_length = num_left_out
        if is_known and int(past_length) < num_left_out:
            raise ValueError(
                f"{prefix}input_ids must hold all tokens that {CACHE_NAME} does not, got {given.shape[1]} of "
                f"{input_ids.shape[1]} tokens and a past of {int(past_length)}: the cache was lost between two steps "
                f"of generate (hf_vit was {tested_with()})"
            )
        if prefix and model_inputs.get("decoder_position_ids") is None:
            mask = model_inputs.get("decoder_attention_mask")
            if isinstance(mask, torch.Tensor) and mask.ndim == 2 and is_known:
                check_mask("decoder_attention_mask", mask, int(past_length) + given.shape[1])
            slots = torch.arange(given.shape[1], device=given.device) + past_length
            model_inputs["decoder_position_ids"] = text_position_ids(mask, slots)
        return model_inputs


__all__ = ["CheckedGenerationMixin"]
