"""The encoder-decoder Transformer (1706.03762): body, translator, and the decoder alone."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple

from .cache_argument import CACHE_NAME
from .checked_generation import CheckedGenerationMixin
from .configuration_hf_transformer import HfTransformerConfig
from .cpu_linear import linear
from .encoder_decoder import HfTransformerDecoder, HfTransformerDecoderModel, HfTransformerEncoder
from .fast_generation import FastGenerationMixin
from .int8_linear import quantize_linear_layers, refuse_quantized
from .losses import token_loss
from .pipeline_translation import TranslationPipeline  # noqa: F401 (what is imported here is saved beside the weights)
from .target_labels import TargetLabelsMixin
from .tested_versions import refuse_unknown
from .text_position import holds_several_texts
from .transformer_pretrained import HfTransformerPreTrainedModel


def _stem(stack: Any) -> list[nn.Module]:
    """The parts of an encoder or decoder below its layers."""
    parts = (stack.embed_tokens, stack.token_position, stack.attention_position, stack.embedding_norm)
    return [part for part in parts if part is not None]


class HfTransformerModel(HfTransformerPreTrainedModel):
    """The body of the encoder-decoder Transformer.

    Args:
        config ([`HfTransformerConfig`]): the configuration.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    _ties = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012
    _tying_switch = "share_encoder_decoder_embeddings"

    def __init__(self, config: HfTransformerConfig):
        if config.cross_attention_hidden_size not in (None, config.d_model):
            raise ValueError(
                f"cross_attention_hidden_size must be None for an encoder of its own, got "
                f"{config.cross_attention_hidden_size}"
            )
        super().__init__(config)
        self.encoder = HfTransformerEncoder(config)
        self.decoder = HfTransformerDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.encoder.embed_tokens = value
        if self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = value

    def layer_groups(self) -> list[list[nn.Module]]:
        """Modules from the input up, those of both stems first, then those of each layer, the decoder's above the
        encoder's, whose output each of them reads; the rest belongs to the head."""
        layers = [[layer] for layer in (*self.encoder.layers, *self.decoder.layers)]
        layers[len(self.encoder.layers) - 1].append(self.encoder.norm)
        return [self.encoder.stem() + self.decoder.stem(), *layers]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch, source tokens)`): token ids of the source.
            attention_mask (`torch.Tensor` of shape `(batch, source tokens)`, *optional*): 1 for tokens, 0 for padding
                on either side.
            decoder_input_ids (`torch.Tensor` of shape `(batch, target tokens)`): token ids of the target, behind
                `config.decoder_start_token_id`.
            decoder_attention_mask (`torch.Tensor` of shape `(batch, past + target tokens)`, *optional*): likewise;
                padding on the right needs none.
            encoder_outputs (`BaseModelOutput` or tuple, *optional*): of an earlier call, in place of `input_ids`.
            past_key_values, cache (`EncoderDecoderCache`, *optional*): of the steps before, under either name.
            inputs_embeds, decoder_inputs_embeds (`torch.Tensor` of shape `(batch, tokens, d_model)`, *optional*): in
                place of the token ids.
            use_cache (`bool`, *optional*): return keys and values for the next step, under the name that transformers
                has for the cache.
            decoder_position_ids (`torch.Tensor` of shape `(batch, target tokens)`, *optional*): positions of the
                target's tokens, counted from the mask unless given.
            output_attentions, output_hidden_states (`bool`, *optional*): return those of each layer.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the input does not fit the model, or mask or positions tell of more past than the cache
                holds.
        """
        refuse_unknown(self, kwargs, ("output_attentions",))
        kwargs = {**kwargs, "return_dict": True}
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            names = ("last_hidden_state", "hidden_states", "attentions")
            encoder_outputs = BaseModelOutput(**dict(zip(names, encoder_outputs)))
        encoded: Any = encoder_outputs
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            **{CACHE_NAME: decoder_outputs.get(CACHE_NAME)},
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class HfTransformerForConditionalGeneration(TargetLabelsMixin, HfTransformerPreTrainedModel, FastGenerationMixin):
    """The Transformer as a translator: a source text in, the next token of the target out.

    Args:
        config ([`HfTransformerConfig`]): the configuration.
    """

    _ties = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HfTransformerConfig):
        super().__init__(config)
        self.model = HfTransformerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def quantize_dynamic(self) -> "HfTransformerForConditionalGeneration":
        """Round the weights of all linear layers to 8 bits, in place, for faster inference on a CPU; the inputs of
        each layer are rounded as they come, all rows of a batch on one scale. Returns the model itself, which can no
        longer be trained, resized or saved.

        Raises:
            ValueError: if the model is not in eval mode, not on a CPU, or not in float32.
        """
        quantize_linear_layers(self)
        return self

    def train(self, mode: bool = True) -> "HfTransformerForConditionalGeneration":
        """See `torch.nn.Module.train`.

        Raises:
            ValueError: if the model was quantized.
        """
        if mode:
            refuse_quantized(self, "trained")
        super().train(mode)
        return self

    def resize_encoder_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Resize the encoder's vocabulary, where it has its own.

        Raises:
            ValueError: if the embeddings are shared.
        """
        self._resize_own_embeddings(self.model.encoder, new_num_tokens)
        self.config.encoder_vocab_size = new_num_tokens
        return self.model.encoder.embed_tokens

    def resize_decoder_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Resize the decoder's vocabulary and the output, where it has its own.

        Raises:
            ValueError: if the embeddings are shared.
        """
        self._resize_own_embeddings(self.model.decoder, new_num_tokens)
        self.lm_head = self._get_resized_lm_head(self.lm_head, new_num_tokens)
        # It would follow the decoder's if it was not given.
        self.config.encoder_vocab_size = self.model.encoder.embed_tokens.weight.shape[0]
        self.config.vocab_size = new_num_tokens
        self.tie_weights()
        return self.model.decoder.embed_tokens

    def _resize_own_embeddings(self, stack: Any, new_num_tokens: int) -> None:
        if self.config.share_encoder_decoder_embeddings:
            raise ValueError("share_encoder_decoder_embeddings must be False to resize one of them, got True")
        refuse_quantized(self, "resized")
        stack.embed_tokens = self._get_resized_embeddings(stack.embed_tokens, new_num_tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
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
            labels (`torch.Tensor` of shape `(batch, target tokens)`, *optional*): token ids of the target, without
                `config.decoder_start_token_id`: `logits[:, i]` predicts `labels[:, i]`. Unless `decoder_input_ids` are
                given, the decoder reads the labels moved one position to the right. -100 and padding
                (`config.ignored_labels`) do not count. The loss is the cross entropy with `config.label_smoothing`,
                averaged over the labels that count, and zero if none does.
            num_items_in_batch (`int`, *optional*): divisor of the loss in place of that number.

        The rest as for [`HfTransformerModel`].

        Returns:
            `loss` of shape (), if labels were given, and `logits` of shape (batch, target tokens, vocab_size).

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the input or the labels do not fit the model.
        """
        if labels is not None:
            use_cache = bool(use_cache)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            decoder_position_ids=decoder_position_ids,
            cache=cache,
            **{**kwargs, "return_dict": True},
        )
        logits = linear(self.lm_head, outputs.last_hidden_state)
        return Seq2SeqLMOutput(
            loss=None if labels is None else self.loss_of_labels(logits, labels, num_items_in_batch),
            logits=logits,
            **{name: outputs[name] for name in outputs if name != "last_hidden_state"},
        )


class HfTransformerForCausalLM(HfTransformerPreTrainedModel, CheckedGenerationMixin):
    """The decoder alone as a language model, with cross-attention if `config.add_cross_attention`, so that
    `VisionEncoderDecoderModel` can put a Vision Transformer before it (whose folder holds no code: it loads only where
    this package is imported). The configuration is marked as a decoder's, so give it a copy of another model's.
    From the weights of a whole Transformer it takes the decoder's.

    Args:
        config ([`HfTransformerConfig`]): the configuration.
    """

    _keys_to_ignore_on_load_unexpected: Any = (r"^(model\.)?encoder\.",)
    _ties = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HfTransformerConfig):
        # In place, for `VisionEncoderDecoderModel` gives the decoder the configuration that it was made from.
        config.is_decoder, config.is_encoder_decoder = True, False
        super().__init__(config)
        self.model = HfTransformerDecoderModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def get_decoder(self) -> nn.Module:
        return self.model.decoder

    def layer_groups(self) -> list[list[nn.Module]]:
        """As those of [`HfTransformerModel`], of the decoder alone."""
        decoder = self.model.decoder
        return [decoder.stem(), *([layer] for layer in decoder.layers)]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """
        Args:
            labels (`torch.Tensor` of shape `(batch, tokens)`, *optional*): usually `input_ids`: `logits[:, i]`
                predicts `labels[:, i + 1]`, as in all language models of transformers that read their own input.
            shift_labels (`torch.Tensor` of shape `(batch, tokens)`, *optional*): labels in the place of `labels` that
                are moved already, as where a text is spread over processes: `logits[:, i]` predicts
                `shift_labels[:, i]`.
            logits_to_keep (`int` or `torch.Tensor`): compute the logits of this many last tokens (0: all), or of those
                at these positions.

        The rest as for [`HfTransformerDecoder`] and, of the loss, [`HfTransformerForConditionalGeneration`].

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the input or the labels do not fit the model.
        """
        # Not a parameter: the Trainer takes each whose name has "label" in it for one that every batch must have.
        shift_labels = kwargs.pop("shift_labels", None)
        if labels is not None or shift_labels is not None or holds_several_texts(position_ids, attention_mask):
            use_cache = bool(use_cache)
        outputs = self.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=use_cache,
            cache=cache,
            **{**kwargs, "return_dict": True},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, loss = linear(self.lm_head, outputs.last_hidden_state[:, kept]), None
        predicting = logits
        if shift_labels is None and labels is not None:
            predicting, shift_labels = logits[:, :-1], labels[:, 1:]
        if shift_labels is not None:
            loss = token_loss(
                predicting,
                shift_labels,
                ignored=self.config.ignored_labels,
                label_smoothing=self.config.label_smoothing,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithCrossAttentions(
            loss=loss, logits=logits, **{name: outputs[name] for name in outputs if name != "last_hidden_state"}
        )


HfTransformerModel.register_for_auto_class("AutoModel")
HfTransformerForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
HfTransformerForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "HfTransformerForCausalLM",
    "HfTransformerForConditionalGeneration",
    "HfTransformerModel",
    "HfTransformerPreTrainedModel",
]
