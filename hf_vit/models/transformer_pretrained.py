"""Base of all Transformer models: initialisation, tied weights, saving, resizing."""

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import id_tensor_storage

from .configuration_hf_transformer import HfTransformerConfig
from .inference_modes import InferenceModesMixin
from .int8_linear import refuse_quantized
from .tested_versions import fault_of_code, say_if_untested, say_once
from .text_position import RelativeXLSelfAttention


class HfTransformerPreTrainedModel(InferenceModesMixin, PreTrainedModel):
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
    # What is tied to what where this field of the configuration is true.
    _ties: ClassVar[dict[str, str]] = {}
    _tying_switch = "tie_word_embeddings"

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

    @property
    def _tied_weights_keys(self) -> dict[str, str]:  # type: ignore[override]  # transformers only reads it
        return dict(self._ties) if getattr(self.config, self._tying_switch) else {}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """See `PreTrainedModel.get_expanded_tied_weights_keys`, which knows one switch where here are two."""
        return super().get_expanded_tied_weights_keys(all_submodels=True) if all_submodels else self._tied_weights_keys

    def save_pretrained(  # type: ignore[override]  # what is not named here is handed on
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict | None = None, **kwargs: Any
    ) -> Any:
        """See `PreTrainedModel.save_pretrained`. Weights that share their memory though the configuration does not tie
        them (which changed since, by hand or by an adapter) are each saved: a model that is loaded lacks none.

        Raises:
            ValueError: if the model was quantized; nothing is written then.
        """
        refuse_quantized(self, "saved")
        if not self._hf_peft_config_loaded:
            weights = self.state_dict() if state_dict is None else state_dict
            copies = self._copies_of_untied(weights)
            state_dict = {**weights, **copies} if copies else state_dict
        return super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def _copies_of_untied(self, state_dict: dict) -> dict[str, torch.Tensor]:
        tied = self.get_expanded_tied_weights_keys(all_submodels=True)
        names_at = defaultdict(list)
        for name, tensor in state_dict.items():
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                names_at[id_tensor_storage(tensor)].append(name)
        copies = {}
        for names in names_at.values():
            sources = {name: tied[name] if tied.get(name) in names else name for name in names}
            for source in list(dict.fromkeys(sources.values()))[1:]:
                copy = state_dict[source].clone()
                copies.update({name: copy for name in names if sources[name] == source})
        return copies

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
