"""Encoders of ViT-MAE (2111.06377) and ViT-MSN (2204.07141) of transformers, in all but name its ViT."""

from __future__ import annotations

from typing import ClassVar

import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.sources.vit import ViT, fields_of
from hf_vit.models.modeling_hf_vit import HfViTModel


class ViTMAE(ViT):
    """The encoder, which here sees all patches; its fixed positions are learnt ones with their values."""

    peers: ClassVar[tuple[str, ...]] = ("ViTMAEModel",)
    loads: ClassVar = {"ViTMAEForPreTraining": "ViTMAEModel"}
    ignored: ClassVar[tuple[str, ...]] = (*ViT.ignored, r"^decoder\.")

    def peer(self, model: PreTrainedModel) -> nn.Module:
        if not isinstance(model, HfViTModel):
            raise ValueError("its models have no classes")
        return transformers.ViTMAEModel(transformers.ViTMAEConfig(**fields_of(model.config)))


class ViTMSN(ViT):
    peers: ClassVar[tuple[str, ...]] = ("ViTMSNForImageClassification", "ViTMSNModel")

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config = transformers.ViTMSNConfig(**fields_of(model.config))
        if isinstance(model, HfViTModel):
            return transformers.ViTMSNModel(config)
        return transformers.ViTMSNForImageClassification(config)


SOURCES = [ViTMAE(), ViTMSN()]
