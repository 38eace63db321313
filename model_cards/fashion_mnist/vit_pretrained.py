"""Base of all Vision Transformer models: initialisation, capabilities, conversions on loading."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .attention import SelfAttention
from .checkpoint_conversion import OwnConversionsMixin
from .configuration_hf_vit import HfViTConfig
from .inference_modes import InferenceModesMixin
from .layers import LayerScale
from .pooling import AttentionPooling, ClassTokenMeanPooling
from .position_encoding import (
    FixedPosition,
    LearnedPosition,
    LearnedRowColumnPosition,
    MixedRotaryPosition,
    RelativePositionBias,
)
from .tested_versions import say_if_untested
from .vit_attention import ClassAttention, HfViTSelfAttention
from .vit_embeddings import HfViTEmbeddings
from .vit_layer import HfViTLayer

# Standard deviation of a unit normal distribution cut off at two deviations: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
_TRUNCATED_STD = 0.8796256610342398


class HfViTPreTrainedModel(InferenceModesMixin, OwnConversionsMixin, PreTrainedModel):
    """Initialisation and capabilities shared by all Vision Transformer models."""

    config: HfViTConfig
    config_class = HfViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("HfViTEmbeddings", "HfViTLayer", "HfViTClassLayer", "Pooler")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": HfViTLayer,
        "attentions": [SelfAttention, ClassAttention],
    }

    def __init__(self, config: HfViTConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        say_if_untested()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            self._init_trunc_normal(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            init.ones_(module.weight)
            bias: Any = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.scale, module.init_value)
        elif isinstance(module, ClassTokenMeanPooling) and module.weight_logit is not None:
            init.constant_(module.weight_logit, module.initial_logit)
        elif isinstance(module, FixedPosition):
            init.copy_(module.table, module.compute_table(module.native_grid_size, module.table.device))
        elif isinstance(module, RelativePositionBias):
            for table in module.parameters():
                init.zeros_(table)
        elif isinstance(module, MixedRotaryPosition):
            init.copy_(module.frequencies, module.initial_frequencies())
        elif (
            isinstance(module, HfViTSelfAttention) and module.query_bias is not None and module.value_bias is not None
        ):
            init.zeros_(module.query_bias)
            init.zeros_(module.value_bias)
        elif isinstance(module, AttentionPooling):
            # No residual path leads around it: drawn as small as the layers, it would hand on next to nothing, and
            # narrow models would not learn. Its own weights come after those of its parts.
            init.trunc_normal_(module.query, std=module.query.shape[-1] ** -0.5)
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    init.xavier_uniform_(part.weight)
        elif isinstance(module, (HfViTEmbeddings, LearnedPosition, LearnedRowColumnPosition)):
            for parameter in module.parameters(recurse=False):
                self._init_trunc_normal(parameter)

    def _init_trunc_normal(self, parameter: torch.Tensor) -> None:
        """Normal distribution cut off at two deviations, widened so that what is left has std `initializer_range`."""
        std = self.config.initializer_range / _TRUNCATED_STD
        init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


__all__ = ["HfViTPreTrainedModel"]
