"""A Vision Transformer that writes texts: its encoder's tokens are what the decoder of a Transformer attends to.

Shapes: B batch, T tokens.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, Seq2SeqLMOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .cache_argument import CACHE_NAME
from .configuration_hf_vit_image_to_text import HfViTImageToTextConfig
from .cpu_linear import linear
from .encoder_decoder import HfTransformerDecoder
from .fast_generation import FastGenerationMixin
from .inference_modes import InferenceModesMixin
from .modeling_hf_vit import HfViTModel
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401 (what is imported here is saved beside the weights)
from .target_labels import TargetLabelsMixin
from .tested_versions import refuse_unknown, say_if_untested
from .tied_weights import TiedWeightsModel


class ImageReader(HfViTModel):
    """A [`HfViTModel`] that takes no image beyond its positions: stretched over a longer strip, they would name other
    columns than they were learnt for."""

    def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`HfViTModel`].

        Raises:
            ValueError: if there are no images, or they are higher or wider than `image_size`.
        """
        if pixel_values is None:
            raise ValueError("pixel_values must be given unless encoder_outputs are, got None")
        limit = self.config.image_shape
        if pixel_values.ndim == 4 and any(length > most for length, most in zip(pixel_values.shape[2:], limit)):
            raise ValueError(
                f"pixel_values must be at most {limit[0]} x {limit[1]} pixels (image_size), for which there are "
                f"positions, got {pixel_values.shape[2]} x {pixel_values.shape[3]}"
            )
        return super().forward(pixel_values, **kwargs)


class HfViTForImageToText(TargetLabelsMixin, InferenceModesMixin, TiedWeightsModel, FastGenerationMixin):
    """A Vision Transformer as reader, and the decoder of a Transformer as writer: an image in, the next token of its
    caption or transcription out.

    Args:
        config ([`HfViTImageToTextConfig`]): the configuration.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    config: HfViTImageToTextConfig
    config_class = HfViTImageToTextConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image", "text")
    output_modalities: Any = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("HfViTEmbeddings", "HfViTLayer", "HfViTClassLayer", "HfTransformerLayer")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _ties = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HfViTImageToTextConfig):
        config.check()
        super().__init__(config)
        say_if_untested()
        vision, text = config.vision_config, config.text_config
        self.encoder = ImageReader(vision, add_pooling_layer=False)
        self.decoder = HfTransformerDecoder(text)
        self.lm_head = nn.Linear(text.d_model, text.vocab_size, bias=text.lm_head_bias)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of the output layer; encoder and decoder initialise their own."""
        if isinstance(module, nn.Linear):
            std = self.config.text_config.init_std
            init.xavier_uniform_(module.weight) if std is None else init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.embed_tokens = value

    def layer_groups(self) -> list[list[nn.Module]]:
        """Modules from the input up, those of both stems first, then those of each layer, the decoder's above the
        encoder's, whose output each of them reads; the rest belongs to the head."""
        stem, *layers = self.encoder.layer_groups()
        layers[-1].append(self.encoder.norm)
        return [stem + self.decoder.stem(), *layers, *([layer] for layer in self.decoder.layers)]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images, no higher
                and no wider than `image_size` of `config.vision_config`.
            decoder_input_ids (`torch.Tensor` of shape `(batch, tokens)`): token ids of the text, behind
                `decoder_start_token_id`.
            decoder_attention_mask (`torch.Tensor` of shape `(batch, past + tokens)`, *optional*): 1 for tokens, 0 for
                padding; padding on the right needs none.
            encoder_outputs (`ModelOutput` or tuple, *optional*): of an earlier call, in place of `pixel_values`.
            past_key_values, cache (`EncoderDecoderCache`, *optional*): of the steps before, under either name.
            decoder_inputs_embeds (`torch.Tensor` of shape `(batch, tokens, d_model)`, *optional*): in place of the
                token ids.
            labels (`torch.Tensor` of shape `(batch, tokens)`, *optional*): token ids of the text, without
                `decoder_start_token_id`: `logits[:, i]` predicts `labels[:, i]`. Unless `decoder_input_ids` are given,
                the decoder reads the labels moved one position to the right. -100 and padding do not count. The loss
                is the cross entropy with `label_smoothing`, averaged over the labels that count, and zero if none
                does.
            use_cache (`bool`, *optional*): return keys and values for the next step, under the name that transformers
                has for the cache.
            num_items_in_batch (`int`, *optional*): divisor of the loss in place of the number of labels that count.
            decoder_position_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): positions of the tokens,
                counted from the mask unless given.
            output_attentions, output_hidden_states (`bool`, *optional*): return those of each layer.

        Returns:
            `loss` of shape (), if labels were given, and `logits` of shape (batch, tokens, vocab_size).

        Raises:
            TypeError: if an argument is not known.
            ValueError: if images, tokens or labels do not fit the model.
        """
        refuse_unknown(self, kwargs, ("output_attentions",))
        kwargs = {**kwargs, "return_dict": True}
        if labels is not None:
            use_cache = bool(use_cache)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(pixel_values, **kwargs)
        elif not isinstance(encoder_outputs, ModelOutput):
            names = ("last_hidden_state", "hidden_states", "attentions")
            encoder_outputs = BaseModelOutput(**dict(zip(names, encoder_outputs)))
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        logits = linear(self.lm_head, outputs.last_hidden_state)
        return Seq2SeqLMOutput(
            loss=None if labels is None else self.loss_of_labels(logits, labels, num_items_in_batch),
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


HfViTForImageToText.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["HfViTForImageToText"]
