"""Encoder and decoder of the Transformer (1706.03762)."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import CrossAttention, SelfAttention
from .configuration_hf_transformer import HfTransformerConfig
from .layers import drop_path_rates
from .packed_linear import refuse_quantized
from .padding_mask import create_bidirectional_mask
from .text_position import ATTENTION_POSITIONS, TOKEN_POSITIONS, RelativeXLSelfAttention, text_position_ids
from .transformer_layer import HfTransformerLayer, make_norm


class HfTransformerPreTrainedModel(PreTrainedModel):
    """Initialisation and capabilities shared by all Transformer models."""

    config: HfTransformerConfig
    config_class = HfTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HfTransformerLayer",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            self._init_matrix(module.weight, std=None)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            self._init_matrix(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RelativeXLSelfAttention):
            init.zeros_(module.content_bias)
            init.zeros_(module.position_bias)

    def _init_matrix(self, weight: nn.Parameter, std: float | None):
        std = self.config.init_std or std
        if std is None:
            init.xavier_uniform_(weight)
        else:
            init.normal_(weight, std=std)

    # What is tied follows from two switches; the inherited method knows one.
    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        return dict(self._tied_weights_keys or {})

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Resize the vocabulary, of an encoder and its decoder both; see `PreTrainedModel.resize_token_embeddings`.

        Raises:
            ValueError: if each has its own; see `resize_encoder_token_embeddings` and
                `resize_decoder_token_embeddings` of [`HfTransformerForConditionalGeneration`].
        """
        has_both = self.config.is_encoder_decoder
        if has_both and not self.config.share_encoder_decoder_embeddings and new_num_tokens is not None:
            raise ValueError(
                "share_encoder_decoder_embeddings must be True for resize_token_embeddings, got False: use "
                "resize_encoder_token_embeddings or resize_decoder_token_embeddings"
            )
        if new_num_tokens is not None:
            refuse_quantized(self, "resized")
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if has_both and self.config.encoder_vocab_size is not None:
            self.config.encoder_vocab_size = embeddings.weight.shape[0]
        return embeddings


class HfTransformerStack(HfTransformerPreTrainedModel):
    """What encoder and decoder share: token embeddings, positions, layers and, with `norm_position="pre"`, a norm.

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
        self.dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path_rate, getattr(config, f"{self.stack}_layers"))
        self.layers = nn.ModuleList(
            [HfTransformerLayer(config, self.stack, i, rate, has_cross_attention) for i, rate in enumerate(rates)]
        )
        self.norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.post_init()

    @property
    def input_name(self) -> str:
        """What the model that it is part of calls its input."""
        return "decoder_input_ids" if self.stack == "decoder" and self.config.is_encoder_decoder else "input_ids"

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Scaled embeddings of the tokens, shape (batch, tokens, d_model).

        Raises:
            ValueError: unless exactly one of the two is given, or (where looking costs no synchronisation: on the CPU,
                outside a compiled graph) if a token is not in the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of {self.input_name} and their embeddings must be given, got {given}")
        if inputs_embeds is None:
            if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel():
                low, high = (int(value) for value in input_ids.aminmax())
                size = self.embed_tokens.weight.shape[0]  # of an adapter's wrapper too
                if low < 0 or high >= size:
                    raise ValueError(
                        f"{self.input_name} must be in [0, {size}), got {low if low < 0 else high}: "
                        f"the tokenizer's vocabulary does not match the model's"
                    )
            inputs_embeds = self.embed_tokens(input_ids)
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
            position_ids: places of the tokens in their texts, shape (batch, tokens); counted from the mask if `None`.
            attention_mask: shape (batch, past + tokens), 1 for tokens, 0 for padding; or `None`.
            past_length: tokens that came before these.
            num_keys: tokens that these attend to, with the room that a static cache has beyond.

        Raises:
            ValueError: if there are more tokens than the table of `learned` has rows.
        """
        slots = torch.arange(embeddings.shape[1], device=embeddings.device) + past_length  # (N,)
        if position_ids is None:
            position_ids = text_position_ids(attention_mask, slots)
        attention_kwargs = {}
        if self.token_position is not None:
            self._check_length(embeddings.shape[1], past_length)
            embeddings = embeddings + self.token_position(position_ids).to(embeddings.dtype)
        if self.attention_position is not None:
            attention_kwargs = self.attention_position(position_ids, slots, num_keys)
        return self.dropout(embeddings), attention_kwargs

    def _check_length(self, num_tokens: int, past_length: int | torch.Tensor):
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
        **kwargs,
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
        output_attentions = self.check_output_attentions(output_attentions)
        embeddings = self.embed(input_ids, inputs_embeds)
        num_tokens = embeddings.shape[1]
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
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): token ids.
            attention_mask (`torch.Tensor` of shape `(batch, past + tokens)`, *optional*): 1 for tokens, 0 for padding
                on either side.
            encoder_hidden_states (`torch.Tensor` of shape `(batch, source tokens, d_model)`, *optional*): the
                encoder's output. Without it there is no cross-attention.
            encoder_attention_mask (`torch.Tensor` of shape `(batch, source tokens)`, *optional*): 1 for tokens, 0 for
                padding.
            past_key_values (`Cache`, *optional*): keys and values of earlier tokens and of the encoder's output.
            inputs_embeds (`torch.Tensor` of shape `(batch, tokens, d_model)`, *optional*): in place of `input_ids`.
            position_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): places of the tokens in the text,
                counted from the mask unless given; not read by the schemes that see distances alone.
            use_cache (`bool`, *optional*): return keys and values for the next step.
            output_attentions (`bool`, *optional*): return the attention weights of each layer, by the eager
                implementation.

        Returns:
            `last_hidden_state` of shape (batch, tokens, d_model), and `past_key_values` if `use_cache`.

        Raises:
            ValueError: if the input does not fit the model.
        """
        output_attentions = self.check_output_attentions(output_attentions)
        if encoder_hidden_states is not None and not self.has_cross_attention:
            raise ValueError("encoder_hidden_states needs add_cross_attention=True in the configuration, got False")
        if use_cache and past_key_values is None:
            past_key_values = self._new_cache(encoder_hidden_states is not None)
        has_two_caches = isinstance(past_key_values, EncoderDecoderCache)
        own_cache = past_key_values.self_attention_cache if has_two_caches else past_key_values

        embeddings = self.embed(input_ids, inputs_embeds)
        past_length, num_keys = 0, embeddings.shape[1]
        if own_cache is not None:
            past_length, (num_keys, _) = own_cache.get_seq_length(), own_cache.get_mask_sizes(num_keys, 0)
        hidden_states, attention_kwargs = self.add_positions(
            embeddings, position_ids, attention_mask, past_length, num_keys
        )
        # The eager attention that gives weights reads causality from the mask alone.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=own_cache,
            allow_is_causal_skip=not output_attentions,
        )
        if encoder_hidden_states is not None:
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
                past_key_values=past_key_values,
                attention_mask=mask,
                output_attentions=output_attentions,
                **attention_kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _new_cache(self, has_encoder: bool) -> Cache:
        own_cache = DynamicCache(config=self.config)
        return EncoderDecoderCache(own_cache, DynamicCache(config=self.config)) if has_encoder else own_cache


__all__ = ["HfTransformerDecoder", "HfTransformerEncoder", "HfTransformerPreTrainedModel"]
