"""ViT and DeiT of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, fused, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.vit_rules import learned_positions, patch_kernel
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel
from hf_vit.models.strict_config import GATED_ACTIVATIONS

# Of one name and meaning in their configurations and ours.
FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias", "problem_type"),
)
LABELS = ("id2label", "label2id")


def fields_of(config: Any) -> dict[str, Any]:
    """The fields that both configurations have, of either.

    Raises:
        ValueError: the activation is one that transformers lacks.
    """
    check_activation(config)
    return values_of(config, (*FIELDS, *LABELS))


def values_of(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The fields of these names; sizes of squares as one number, which is all that many configurations take."""
    values = {name: getattr(config, name) for name in names}
    for name in {"image_size", "patch_size"} & set(values):
        if isinstance(values[name], (list, tuple)) and len(set(values[name])) == 1:
            values[name] = values[name][0]
    return values


def patch_fit(config: Any) -> dict[str, str]:
    """The field of ours for a configuration whose images need not be whole patches: a convolution leaves out the
    rest."""
    values = values_of(config, ("image_size", "patch_size"))
    sizes, patches = (value if isinstance(value, (list, tuple)) else [value] * 2 for value in values.values())
    return {"patch_fit": "crop" if any(map(int.__mod__, sizes, patches)) else "exact"}


def check_activation(config: Any) -> None:
    """Raises `ValueError` if the activation is none of transformers', which gates otherwise."""
    if config.hidden_act in GATED_ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of transformers' activations, got {config.hidden_act!r}")


def pooling_of(peer: Peer) -> str:
    """`pooling` of a model, which may have a head, a pooler or neither.

    Raises:
        ValueError: its pooler is another than ours.
    """
    if (pooler := getattr(peer, "pooler", None)) is None:
        return "none" if hasattr(peer, "pooler") else "cls"
    if peer.config.pooler_act != "tanh":
        raise ValueError(f"pooler_act must be 'tanh', got {peer.config.pooler_act!r}")
    if pooler.dense.out_features != peer.config.hidden_size:
        size = peer.config.hidden_size
        raise ValueError(f"pooler_output_size must be hidden_size ({size}), got {pooler.dense.out_features}")
    return "cls_tanh"


def encoder_rules(config: HfViTConfig, body: str) -> list[Rule]:
    """Rules for embeddings, layers and norm of the peer's body `body`."""
    layer, theirs = "vit.layers.*", f"{body}.layers.*"
    return [
        same("vit.embeddings.class_token", f"{body}.embeddings.cls_token"),
        learned_positions(config, f"{body}.embeddings.position_embeddings"),
        patch_kernel(config, f"{body}.embeddings.patch_embeddings.projection.weight"),
        same("vit.embeddings.patch_embedding.projection.bias", f"{body}.embeddings.patch_embeddings.projection.bias"),
        fused(f"{layer}.attention.qkv_proj.*", *(f"{theirs}.attention.{part}_proj.*" for part in "qkv")),
        same(f"{layer}.attention.out_proj.*", f"{theirs}.attention.o_proj.*"),
        same(f"{layer}.attention_norm.*", f"{theirs}.layernorm_before.*"),
        same(f"{layer}.mlp_norm.*", f"{theirs}.layernorm_after.*"),
        same(f"{layer}.mlp.fc1.*", f"{theirs}.mlp.fc1.*"),
        same(f"{layer}.mlp.fc2.*", f"{theirs}.mlp.fc2.*"),
        same("vit.norm.*", f"{body}.layernorm.*"),
        same("vit.pooler.poolings.cls_tanh.dense.*", f"{body}.pooler.dense.*"),
    ]


class ViT(Source):
    library = "transformers"
    peers: ClassVar[tuple[str, ...]] = ("ViTForImageClassification", "ViTModel")
    ignored: ClassVar[tuple[str, ...]] = (r"embeddings\.mask_token$",)

    def config(self, peer: Peer) -> HfViTConfig:
        return HfViTConfig(**fields_of(peer.config), pooling=pooling_of(peer))

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config = transformers.ViTConfig(**fields_of(model.config))
        if isinstance(model, HfViTModel):
            return transformers.ViTModel(config, add_pooling_layer=model.config.pooling == "cls_tanh")
        return transformers.ViTForImageClassification(config)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if hasattr(peer, "classifier") else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        return [*encoder_rules(config, "vit"), same("classifier.*", "classifier.*")]


class DeiT(Source):
    """DeiT with both heads; with one, the distillation token, which it carries but does not read, is a register."""

    library = "transformers"
    peers = ("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification", "DeiTModel")
    ignored = (r"embeddings\.mask_token$",)

    def config(self, peer: Peer) -> HfViTConfig:
        has_two_heads = hasattr(peer, "distillation_classifier")
        return HfViTConfig(
            **fields_of(peer.config),
            use_distillation_token=has_two_heads,
            num_register_tokens=int(not has_two_heads),
            pooling=pooling_of(peer),
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config = transformers.DeiTConfig(**fields_of(model.config))
        if isinstance(model, HfViTModel):
            return transformers.DeiTModel(config, add_pooling_layer=model.config.pooling == "cls_tanh")
        if model.config.use_distillation_token:
            return transformers.DeiTForImageClassificationWithTeacher(config)
        return transformers.DeiTForImageClassification(config)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTModel if type(peer).__name__ == "DeiTModel" else HfViTForImageClassification

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        token = "distillation_token" if config.use_distillation_token else "register_tokens"
        return [
            *encoder_rules(config, "deit"),
            same(f"vit.embeddings.{token}", "deit.embeddings.distillation_token"),
            same("classifier.*", "cls_classifier.*" if config.use_distillation_token else "classifier.*"),
            same("distillation_head.*", "distillation_classifier.*"),
        ]


SOURCES = [ViT(), DeiT()]
