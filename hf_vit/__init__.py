"""Vision Transformers and encoder-decoder Transformers as first-class Hugging Face models."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .models.configuration_hf_transformer import HfTransformerConfig
from .models.configuration_hf_vit import HfViTConfig
from .models.image_processing_hf_vit import HfViTImageProcessor
from .models.modeling_hf_transformer import (
    HfTransformerForCausalLM,
    HfTransformerForConditionalGeneration,
    HfTransformerModel,
)
from .models.modeling_hf_vit import HfViTBackbone, HfViTForImageClassification, HfViTModel

__version__ = "0.1.0"

AutoConfig.register(HfViTConfig.model_type, HfViTConfig)
AutoModel.register(HfViTConfig, HfViTModel)
AutoModelForImageClassification.register(HfViTConfig, HfViTForImageClassification)
AutoBackbone.register(HfViTConfig, HfViTBackbone)
AutoImageProcessor.register(
    HfViTConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), HfViTImageProcessor)
)
AutoConfig.register(HfTransformerConfig.model_type, HfTransformerConfig)
AutoModel.register(HfTransformerConfig, HfTransformerModel)
AutoModelForSeq2SeqLM.register(HfTransformerConfig, HfTransformerForConditionalGeneration)
AutoModelForCausalLM.register(HfTransformerConfig, HfTransformerForCausalLM)

__all__ = [
    "HfTransformerConfig",
    "HfTransformerForCausalLM",
    "HfTransformerForConditionalGeneration",
    "HfTransformerModel",
    "HfViTBackbone",
    "HfViTConfig",
    "HfViTForImageClassification",
    "HfViTImageProcessor",
    "HfViTModel",
]
