"""Small classifiers of every kind, saved with their processor."""

import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.tasks.image_classification.data import class_mapping

NAMES = ["ant", "bee", "cow"]
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
MODELS = {
    "ours": lambda **classes: HfViTForImageClassification(HfViTConfig(**VIT, image_size=24, **classes)),
    "vit": lambda **classes: ViTForImageClassification(ViTConfig(**VIT, image_size=24, **classes)),
    "cnn": lambda **classes: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **classes)
    ),
    "timm": lambda **classes: TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 24, "patch_size": 8}, **classes)
    ),
}


def save(folder, kind="ours", names=NAMES):
    torch.manual_seed(len(str(folder)))
    model = MODELS[kind](**class_mapping(names)).eval()
    for parameter in model.parameters():  # far enough from zero for logits that differ
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.2] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    return str(folder), model
