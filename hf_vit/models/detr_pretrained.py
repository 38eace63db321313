"""Base of all models of the detection Transformer: initialisation and capabilities."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_hf_detr import HfDetrConfig
from .detr_decoder import ClassHead, FeatureMix, ZeroLinear
from .modeling_hf_vit import HfViTBackbone
from .tested_versions import say_if_untested

# With which a sigmoid's class starts: most queries are no object of most classes (1708.02002).
_PRIOR = 0.01


def make_backbone(config: Any) -> Any:
    """Return a backbone with random weights: of ours, by the class beside this file, which Auto classes do not know
    where the package is missing."""
    is_own = config.model_type == HfViTBackbone.config_class.model_type
    return HfViTBackbone(config) if is_own else AutoBackbone.from_config(config)


class HfDetrPreTrainedModel(PreTrainedModel):
    """Initialisation and capabilities shared by all models of the detection Transformer."""

    config: HfDetrConfig
    config_class = HfDetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: Any = ("HfTransformerLayer", "HfViTLayer", "HfViTEmbeddings")
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: HfDetrConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        say_if_untested()

    @classmethod
    def from_backbone(
        cls, name_or_path: str, out_indices: list[int] | None = None, trust_remote_code: bool = False, **fields: Any
    ) -> "HfDetrPreTrainedModel":
        """Return a model whose backbone is a trained one, and whose other weights are random.

        Args:
            name_or_path: folder or id on the Hub of a model that has a backbone; one of its classifiers serves too.
            out_indices: stages whose feature maps are mixed; those of its configuration unless given.
            trust_remote_code: execute the code in it.
            fields: of [`HfDetrConfig`].
        """
        options = {} if out_indices is None else {"out_indices": out_indices}
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **options)
        backbone = type(make_backbone(config)).from_pretrained(name_or_path, config=config)
        model = cls(HfDetrConfig(backbone_config=backbone.config, **fields))
        body: Any = getattr(model, cls.base_model_prefix, model)
        body.backbone.load_state_dict(backbone.state_dict())
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (ZeroLinear, ClassHead)):
            self._init_head(module)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            bias: Any = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, FeatureMix):
            init.zeros_(module.weights)

    def _init_head(self, module: ZeroLinear | ClassHead) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        else:
            init.normal_(module.weight, std=0.01)
        is_sigmoid = isinstance(module, ClassHead) and self.config.class_loss == "iou_aware"
        init.constant_(module.bias, -math.log((1 - _PRIOR) / _PRIOR) if is_sigmoid else 0.0)


__all__ = ["HfDetrPreTrainedModel", "make_backbone"]
