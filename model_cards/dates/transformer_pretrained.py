"""Base of all Transformer models: initialisation, tied weights, saving, resizing."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hf_transformer import HfTransformerConfig
from .inference_modes import InferenceModesMixin
from .int8_linear import refuse_quantized
from .tested_versions import fault_of_code, say_if_untested, say_once
from .text_position import RelativeXLSelfAttention
from .tied_weights import TiedWeightsModel


class HfTransformerPreTrainedModel(InferenceModesMixin, TiedWeightsModel):
    """Initialisation and capabilities shared by all Transformer models."""

    config: HfTransformerConfig
    config_class = HfTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("HfTransformerLayer",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: HfTransformerConfig):
        super().__init__(config)
        say_if_untested()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedModel.from_pretrained`. Says so if the code in a folder, which does not run, is at fault."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if fault := fault_of_code(pretrained_model_name_or_path):
            say_once(f"{pretrained_model_name_or_path}: {fault}, which was loaded here")
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            self._init_matrix(module.weight, std=None)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            self._init_matrix(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
            bias: Any = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, RelativeXLSelfAttention):
            init.zeros_(module.content_bias)
            init.zeros_(module.position_bias)

    def _init_matrix(self, weight: torch.Tensor, std: float | None) -> None:
        std = self.config.init_std or std
        if std is None:
            init.xavier_uniform_(weight)
        else:
            init.normal_(weight, std=std)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
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


__all__ = ["HfTransformerPreTrainedModel"]
