"""Vision Transformers and encoder-decoder Transformers as first-class Hugging Face models.

Importing it loads torch, transformers and the models, and registers them with the Auto classes; the rest
(`hf_vit.tasks`, `hf_vit.trainer`, `hf_vit.cards`, `hf_vit.explain`, ...) loads when asked for.
"""

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Any

from . import models

if TYPE_CHECKING:  # The same names as `_register` finds, for editors and type checkers
    from .models.configuration_hf_detr import HfDetrConfig as HfDetrConfig
    from .models.configuration_hf_transformer import HfTransformerConfig as HfTransformerConfig
    from .models.configuration_hf_vit import HfViTConfig as HfViTConfig
    from .models.configuration_hf_vit_image_to_text import HfViTImageToTextConfig as HfViTImageToTextConfig
    from .models.image_processing_hf_detr import HfDetrImageProcessor as HfDetrImageProcessor
    from .models.image_processing_hf_vit import HfViTImageProcessor as HfViTImageProcessor
    from .models.modeling_hf_detr import HfDetrForObjectDetection as HfDetrForObjectDetection
    from .models.modeling_hf_detr import HfDetrForSegmentation as HfDetrForSegmentation
    from .models.modeling_hf_detr import HfDetrModel as HfDetrModel
    from .models.modeling_hf_transformer import HfTransformerForCausalLM as HfTransformerForCausalLM
    from .models.modeling_hf_transformer import (
        HfTransformerForConditionalGeneration as HfTransformerForConditionalGeneration,
    )
    from .models.modeling_hf_transformer import HfTransformerModel as HfTransformerModel
    from .models.modeling_hf_vit import HfViTBackbone as HfViTBackbone
    from .models.modeling_hf_vit import HfViTForImageClassification as HfViTForImageClassification
    from .models.modeling_hf_vit import HfViTModel as HfViTModel
    from .models.modeling_hf_vit_image_to_text import HfViTForImageToText as HfViTForImageToText

__version__ = "0.1.0"


def _register(auto_map: dict[str, str]) -> dict[str, type]:
    """Registers a configuration and its models with the Auto classes that its `AUTO_MAP` names; returns them all."""

    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    def load(reference: str) -> type:
        module, _, name = reference.partition(".")
        return getattr(importlib.import_module(f".{module}", models.__name__), name)

    found = {auto_class: load(reference) for auto_class, reference in auto_map.items()}
    config: Any = found["AutoConfig"]
    transformers.AutoConfig.register(config.model_type, config)
    for auto_class, model in found.items():
        if auto_class == "AutoImageProcessor":
            AutoImageProcessor.register(config, image_processor_classes=dict.fromkeys(("torchvision", "pil"), model))
        elif auto_class != "AutoConfig":
            getattr(transformers, auto_class).register(config, model)
    return {each.__name__: each for each in found.values()}


_public: dict[str, type] = {}
# Somebody who presses the Tab key waits for the names of verbs and options, and needs no models for them.
_completes = "_HF_VIT_COMPLETE" in os.environ
for _module in () if _completes else pkgutil.iter_modules(models.__path__):
    if _module.name.startswith("configuration_"):
        _configuration = importlib.import_module(f".{_module.name}", models.__name__)
        _public |= _register({**_configuration.AUTO_MAP, **getattr(_configuration, "PROCESSOR_AUTO_MAP", {})})
globals().update(_public)

__all__ = sorted(_public)


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(module.name for module in pkgutil.iter_modules(__path__))})
