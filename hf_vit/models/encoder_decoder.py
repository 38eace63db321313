"""Encoder and decoder of the Transformer (1706.03762).

Shapes: T tokens.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import CrossAttention, SelfAttention
from .cache_argument import CACHE_NAME, check_mask, check_past, one_cache
from .configuration_hf_transformer import HfTransformerConfig
from .layers import drop_path_rates, make_norm
from .padding_mask import create_bidirectional_mask
from .tested_versions import refuse_unknown
from .text_position import (
    ATTENTION_POSITIONS,
    TOKEN_POSITIONS,
    check_position_ids,
    holds_several_texts,
    text_position_ids,
)
from .transformer_layer import HfTransformerLayer
from .transformer_pretrained import HfTransformerPreTrainedModel


class HfTransformerStack(HfTransformerPreTrainedModel):
    """Base of encoder and decoder: token embeddings, positions, layers and, with `norm_position="pre"`, a norm.

    Args:
        config: the configuration.
        vocab_size: tokens that it embeds.
        has_cross_attention: whether the layers attend to an encoder.
    """

    stack: str

    def __init__(self, config: HfTransformerConfig, vocab_size: int, has_cross_attention: bool):
        config.check()
        super().__init__(config)
        num_heads = getattr(config, f"{self.stack}_attention_heads")
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        token_position = TOKEN_POSITIONS.get(config.position_embedding)
        attention_position = ATTENTION_POSITIONS.get(config.position_embedding)
        self.token_position = token_position(config) if token_position else None
        is_causal = self.stack == "decoder"
        self.attention_position = attention_position(config, num_heads, is_causal) if attention_position else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path_rate, getattr(config, f"{self.stack}_layers"))
        self.layers = nn.ModuleList(
            [HfTransformerLayer(config, self.stack, i, rate, has_cross_attention) for i, rate in enumerate(rates)]
        )
        self.norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.post_init()

    @property
    def input_name(self) -> str:
        """Name that the model that it is part of gives its input."""
        return "decoder_input_ids" if self.stack == "decoder" and self.config.is_encoder_decoder else "input_ids"

    def stem(self) -> list[nn.Module]:
        """The parts below the layers."""
        parts = (self.embed_tokens, self.token_position, self.attention_position, self.embedding_norm)
        return [part for part in parts if part is not None]

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Scaled embeddings of the tokens, shape (batch, tokens, d_model).

        Raises:
            ValueError: unless exactly one of the two is given, or (where looking costs no synchronisation: on the CPU,
                outside a compiled graph) if a token is not in the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of {self.input_name} and their embeddings must be given, got {given}")
        tokens: Any = input_ids
        if inputs_embeds is None:
            if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
                low, high = (int(value) for value in tokens.aminmax())
                size = self.embed_tokens.weight.shape[0]  # of an adapter's wrapper too
                if low < 0 or high >= size:
                    raise ValueError(
                        f"{self.input_name} must be in [0, {size}), got {low if low < 0 else high}: "
                        f"the tokenizer's vocabulary does not match the model's"
                    )
            inputs_embeds = self.embed_tokens(tokens)
        if inputs_embeds.shape[1] == 0:
            raise ValueError(
                f"{self.input_name} must have at least one token, got shape {(*inputs_embeds.shape[:2],)}"
            )
        return inputs_embeds * self.embed_scale

    def add_positions(
        self,
        embeddings: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor,
        num_keys: int,
    ) -> tuple[torch.Tensor, dict]:
        """The layers' input, shape (batch, tokens, d_model), and what their self-attention is told of the positions.

        Args:
            embeddings: shape (batch, tokens, d_model).
            position_ids: of the tokens in their texts, shape (batch, tokens); counted from the mask if `None`.
            attention_mask: shape (batch, past + tokens), 1 for tokens, 0 for padding; or `None`.
            past_length: tokens that came before these.
            num_keys: tokens that these attend to, with the room that a static cache has beyond.

        Raises:
            ValueError: if there are more tokens than the table of `learned` has rows, or if the positions are not of
                the tokens' shape, or none that the position embedding can express.
        """
        slots = torch.arange(embeddings.shape[1], device=embeddings.device) + past_length  # (T,)
        if position_ids is None:
            self._check_length(embeddings.shape[1], past_length)
            position_ids = text_position_ids(attention_mask, slots)
        else:
            check_position_ids(self.config, position_ids, attention_mask, slots, len(embeddings), self.input_name)
        attention_kwargs = {}
        if self.token_position is not None:
            embeddings = embeddings + self.token_position(position_ids).to(embeddings.dtype)
        if self.attention_position is not None:
            attention_kwargs = self.attention_position(position_ids, slots, num_keys)
        if self.embedding_norm is not None:
            embeddings = self.embedding_norm(embeddings)
        return self.dropout(embeddings), attention_kwargs

    def _check_length(self, num_tokens: int, past_length: int | torch.Tensor) -> None:
        if self.config.position_embedding != "learned" or torch.compiler.is_compiling():
            return
        length, limit = num_tokens + int(past_length), self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"{self.input_name} must have at most {limit} tokens (max_position_embeddings), got {length}"
            )

    def check_output_attentions(self, output_attentions: bool | None) -> bool:
        """Whether to return attention weights: as asked, or as the configuration says.

        Raises:
            ValueError: if the attention implementation makes masks that cannot give them.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        implementation = self.config._attn_implementation
        if output_attentions and implementation not in ("eager", "sdpa"):
            raise ValueError(f"output_attentions needs attn_implementation 'eager' or 'sdpa', got {implementation!r}")
        return output_attentions


class HfTransformerEncoder(HfTransformerStack):
    """The encoder: every token attends to every token that the mask keeps.

    Args:
        config ([`HfTransformerConfig`]): the configuration.
    """

    stack = "encoder"
    _can_record_outputs = {"hidden_states": HfTransformerLayer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config: HfTransformerConfig):
        super().__init__(config, config.encoder_vocab_size or config.vocab_size, has_cross_attention=False)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): token ids.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for tokens, 0 for padding on
                either side.
            inputs_embeds (`torch.Tensor` of shape `(batch, tokens, d_model)`, *optional*): in place of `input_ids`.
            output_attentions (`bool`, *optional*): return the attention weights of each layer, by the eager
                implementation.

        Returns:
            `last_hidden_state` of shape (batch, tokens, d_model).

        Raises:
            ValueError: if the input does not fit the model.
        """
        refuse_unknown(self, kwargs)
        output_attentions = self.check_output_attentions(output_attentions)
        embeddings = self.embed(input_ids, inputs_embeds)
        num_tokens = embeddings.shape[1]
        check_mask("attention_mask", attention_mask, num_tokens)
        padding = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
        hidden_states, attention_kwargs = self.add_positions(embeddings, None, padding, 0, num_tokens)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeddings, attention_mask=attention_mask)
        # Gradients reach what is given by position under every kind of gradient checkpointing.
        position_bias = attention_kwargs.pop("position_bias", None)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_bias,
                attention_mask=mask,
                output_attentions=output_attentions,
                **attention_kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class HfTransformerDecoder(HfTransformerStack):
    """The decoder: every token attends to itself, to the tokens before it and, if it has cross-attention, to the
    encoder's output.

    Args:
        config ([`HfTransformerConfig`]): the configuration.
    """

    stack = "decoder"
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": HfTransformerLayer,
        "attentions": SelfAttention,
        "cross_attentions": CrossAttention,
    }

    def __init__(self, config: HfTransformerConfig):
        self.has_cross_attention = config.is_encoder_decoder or config.add_cross_attention
        super().__init__(config, config.vocab_size, self.has_cross_attention)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): token ids.
            attention_mask (`torch.Tensor` of shape `(batch, past + tokens)`, *optional*): 1 for tokens, 0 for padding
                on either side.
            encoder_hidden_states (`torch.Tensor` of shape `(batch, source tokens, d_model)`, *optional*): the
                encoder's output, `config.cross_attention_hidden_size` wide where it is given. Without it there is no
                cross-attention.
            encoder_attention_mask (`torch.Tensor` of shape `(batch, source tokens)`, *optional*): 1 for tokens, 0 for
                padding.
            past_key_values, cache (`Cache`, *optional*): keys and values of earlier tokens and of the encoder's
                output, under either name.
            inputs_embeds (`torch.Tensor` of shape `(batch, tokens, d_model)`, *optional*): in place of `input_ids`.
            position_ids (`torch.Tensor` of shape `(batch or 1, tokens)`, *optional*): indices of the tokens in their
                texts, counted from the mask unless given, and never more than there are tokens before. Where they do
                not go on by one, a text begins: without `attention_mask` the texts of a row do not see one another,
                and there is no cache, as in transformers' language models; with a mask, the mask alone decides.
                `relative` and `relative_xl`, which see distances alone, take those that count tokens one by one.
            use_cache (`bool`, *optional*): return keys and values for the next step.
            output_attentions (`bool`, *optional*): return the attention weights of each layer, by the eager
                implementation.

        Returns:
            `last_hidden_state` of shape (batch, tokens, d_model), and the cache if `use_cache`, under the name that
            transformers has for it.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the input does not fit the model, or mask or positions tell of more past than the cache
                holds.
        """
        refuse_unknown(self, kwargs)
        past_key_values = one_cache(past_key_values, cache)
        output_attentions = self.check_output_attentions(output_attentions)
        if encoder_hidden_states is not None and not self.has_cross_attention:
            raise ValueError("encoder_hidden_states needs add_cross_attention=True in the configuration, got False")
        if holds_several_texts(position_ids, attention_mask):
            self._check_several_texts(bool(use_cache) or past_key_values is not None)
        if use_cache and past_key_values is None:
            past_key_values = self._new_cache(encoder_hidden_states is not None)
        own_cache: Any = past_key_values
        if isinstance(past_key_values, EncoderDecoderCache):
            own_cache = past_key_values.self_attention_cache

        embeddings = self.embed(input_ids, inputs_embeds)
        past_length, num_keys = 0, embeddings.shape[1]
        if own_cache is not None:
            past_length, (num_keys, _) = own_cache.get_seq_length(), own_cache.get_mask_sizes(num_keys, 0)
        if self.layers:  # without layers nothing is kept
            prefix = "decoder_" if self.config.is_encoder_decoder else ""
            check_past(prefix, attention_mask, position_ids, embeddings.shape[1], past_length, num_keys)
        hidden_states, attention_kwargs = self.add_positions(
            embeddings, position_ids, attention_mask, past_length, num_keys
        )
        # The eager attention that gives weights reads causality from the mask alone.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            allow_is_causal_skip=not output_attentions,
            **{CACHE_NAME: own_cache},
        )
        if encoder_hidden_states is not None:
            check_mask("encoder_attention_mask", encoder_attention_mask, encoder_hidden_states.shape[1])
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=embeddings,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )
        position_bias = attention_kwargs.pop("position_bias", None)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_bias,
                encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                attention_mask=mask,
                output_attentions=output_attentions,
                # Under the name by which gradient checkpointing looks for what it must not keep.
                **{CACHE_NAME: past_key_values},
                **attention_kwargs,
            )
        kept: dict[str, Any] = {CACHE_NAME: past_key_values if use_cache else None}
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.norm(hidden_states), **kept)

    def _check_several_texts(self, has_cache: bool) -> None:
        if has_cache:
            raise ValueError("position_ids of several texts in a row need use_cache=False and no cache, got a cache")
        implementation = self.config._attn_implementation
        if implementation not in ("eager", "sdpa", "flex_attention"):
            raise ValueError(
                "position_ids of several texts in a row need attn_implementation 'eager', 'sdpa' or 'flex_attention', "
                f"got {implementation!r}"
            )

    def _new_cache(self, has_encoder: bool) -> Cache:
        own_cache = DynamicCache(config=self.config)
        return EncoderDecoderCache(own_cache, DynamicCache(config=self.config)) if has_encoder else own_cache


class HfTransformerDecoderModel(HfTransformerPreTrainedModel):
    """The body of [`HfTransformerForCausalLM`]: the decoder, by the name that it has in the whole Transformer.

    Args:
        config ([`HfTransformerConfig`]): the configuration.
    """

    _keys_to_ignore_on_load_unexpected: Any = (r"^(model\.)?encoder\.",)

    def __init__(self, config: HfTransformerConfig):
        super().__init__(config)
        self.decoder = HfTransformerDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.embed_tokens = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See [`HfTransformerDecoder`]."""
        return self.decoder(*args, **kwargs)


__all__ = ["HfTransformerDecoder", "HfTransformerDecoderModel", "HfTransformerEncoder"]
