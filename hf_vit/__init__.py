"""Vision Transformers and encoder-decoder Transformers as first-class Hugging Face models."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from .models.configuration_hf_vit import HfViTConfig
from .models.modeling_hf_vit import HfViTBackbone, HfViTForImageClassification, HfViTModel

__version__ = "0.1.0"

AutoConfig.register(HfViTConfig.model_type, HfViTConfig)
AutoModel.register(HfViTConfig, HfViTModel)
AutoModelForImageClassification.register(HfViTConfig, HfViTForImageClassification)
AutoBackbone.register(HfViTConfig, HfViTBackbone)

__all__ = ["HfViTBackbone", "HfViTConfig", "HfViTForImageClassification", "HfViTModel"]
