"""DINOv2 (2304.07193), with and without registers (2309.16588), and DINOv3 (2508.10104) of transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, constant, fused, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.sources.vit import LABELS, values_of
from hf_vit.conversion.vit_rules import LAYER, learned_positions, patch_kernel, projections
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "drop_path_rate", "apply_layernorm"),
)


def _shared(config: Any, *more: str) -> dict[str, Any]:
    return values_of(config, (*_FIELDS, *LABELS, *more))


def _layer_rules(config: HfViTConfig, theirs: str) -> list[Rule]:
    """Rules for what the layers of all three call by the same names."""
    gated = [fused(f"{LAYER}.mlp.fc1.*", f"{theirs}.mlp.gate_proj.*", f"{theirs}.mlp.up_proj.*")]
    return [
        same(f"{LAYER}.attention_norm.*", f"{theirs}.norm1.*"),
        same(f"{LAYER}.mlp_norm.*", f"{theirs}.norm2.*"),
        same(f"{LAYER}.layer_scale1.scale", f"{theirs}.layer_scale1.lambda1"),
        same(f"{LAYER}.layer_scale2.scale", f"{theirs}.layer_scale2.lambda1"),
        *(gated if config.hidden_act == "swiglu" else []),
    ]


class Dinov2(Source):
    library = "transformers"
    peers = ("Dinov2ForImageClassification", "Dinov2Model")
    body, name = "dinov2", "Dinov2"

    def config(self, peer: Peer) -> HfViTConfig:
        theirs = peer.config
        mlp, is_gated = peer.base_model.encoder.layer[0].mlp, theirs.use_swiglu_ffn
        return HfViTConfig(
            **_shared(theirs, "hidden_dropout_prob", "attention_probs_dropout_prob", "qkv_bias", "problem_type"),
            intermediate_size=next(part for name, part in mlp.named_children() if name in _SECOND).in_features,
            hidden_act="swiglu" if is_gated else theirs.hidden_act,
            layer_scale_init_value=theirs.layerscale_value,
            pooling=["cls", "mean"] if hasattr(peer, "classifier") else "cls",
            **self._registers(theirs),
        )

    def _registers(self, theirs: Any) -> dict[str, Any]:
        return {}

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        is_gated = config.hidden_act == "swiglu"
        # Of a gated MLP the hidden layer is two thirds of it, rounded up.
        width = config.intermediate_size * (3 / 2 if is_gated else 1)
        theirs = getattr(transformers, f"{self.name}Config")(
            **_shared(config, "hidden_dropout_prob", "attention_probs_dropout_prob", "qkv_bias", "problem_type"),
            mlp_ratio=int(width // config.hidden_size),
            use_swiglu_ffn=is_gated,
            hidden_act="gelu" if is_gated else config.hidden_act,
            layerscale_value=1.0 if config.layer_scale_init_value is None else config.layer_scale_init_value,
            **self._their_registers(config),
        )
        kind = "Model" if isinstance(model, HfViTModel) else "ForImageClassification"
        return getattr(transformers, f"{self.name}{kind}")(theirs)

    def _their_registers(self, config: HfViTConfig) -> dict[str, Any]:
        return {}

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if hasattr(peer, "classifier") else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        embeddings, layer = f"{self.body}.embeddings", f"{self.body}.encoder.layer.*"
        if hasattr(peer.base_model.encoder.layer[0].attention, "q_proj"):
            names = [f"{layer}.attention.{part}_proj" for part in "qkvo"]
        else:  # before transformers 5.24
            names = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
            names.append(f"{layer}.attention.output.dense")
        return [
            same("vit.embeddings.class_token", f"{embeddings}.cls_token"),
            same("vit.embeddings.register_tokens", f"{embeddings}.register_tokens"),
            constant(f"{embeddings}.mask_token", lambda: torch.zeros(1, config.hidden_size)),
            learned_positions(config, f"{embeddings}.position_embeddings"),
            patch_kernel(config, f"{embeddings}.patch_embeddings.projection.weight"),
            same("vit.embeddings.patch_embedding.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
            *projections(config, *names[:3]),
            same(f"{LAYER}.attention.out_proj.*", f"{names[3]}.*"),
            *self._mlp_rules(layer, peer),
            *_layer_rules(config, layer),
            same("vit.norm.*", f"{self.body}.layernorm.*"),
            same("classifier.*", "classifier.*"),
        ]

    @staticmethod
    def _mlp_rules(layer: str, peer: Peer) -> list[Rule]:
        parts = dict(peer.base_model.encoder.layer[0].mlp.named_children())
        rules = [same(f"{LAYER}.mlp.fc2.*", f"{layer}.mlp.{name}.*") for name in _SECOND if name in parts]
        return [*rules, *(same(f"{LAYER}.mlp.fc1.*", f"{layer}.mlp.{name}.*") for name in _FIRST if name in parts)]


# The two layers of an MLP: plain, and gated before and since transformers 5.24, which keeps the first in two.
_FIRST, _SECOND = ("fc1", "weights_in"), ("fc2", "weights_out", "down_proj")


class Dinov2WithRegisters(Dinov2):
    """The class token alone has a position."""

    peers = ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel")
    body, name = "dinov2_with_registers", "Dinov2WithRegisters"

    def _registers(self, theirs: Any) -> dict[str, Any]:
        return {"num_register_tokens": theirs.num_register_tokens, "position_embedding_on_prefix": "class"}

    def _their_registers(self, config: HfViTConfig) -> dict[str, Any]:
        return {"num_register_tokens": config.num_register_tokens}


class DINOv3ViT(Source):
    library = "transformers"
    peers = ("DINOv3ViTModel",)

    def config(self, peer: Peer) -> HfViTConfig:
        theirs = peer.config
        if theirs.query_bias != theirs.value_bias:
            raise ValueError(f"query_bias must be {theirs.value_bias} as value_bias is, got {theirs.query_bias}")
        if theirs.use_gated_mlp and theirs.hidden_act != "silu":
            raise ValueError(f"hidden_act must be 'silu' with use_gated_mlp, got {theirs.hidden_act!r}")
        return HfViTConfig(
            **_shared(theirs, "intermediate_size", "num_register_tokens", "key_bias", "proj_bias", "mlp_bias"),
            attention_probs_dropout_prob=theirs.attention_dropout,
            hidden_act="swiglu" if theirs.use_gated_mlp else theirs.hidden_act,
            qkv_bias=theirs.query_bias,
            layer_scale_init_value=theirs.layerscale_value,
            position_embedding="rope_2d",
            rope_theta=theirs.rope_theta,
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        is_gated = config.hidden_act == "swiglu"
        return transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                **_shared(config, "intermediate_size", "num_register_tokens", "key_bias", "proj_bias", "mlp_bias"),
                attention_dropout=config.attention_probs_dropout_prob,
                hidden_act="silu" if is_gated else config.hidden_act,
                use_gated_mlp=is_gated,
                query_bias=config.qkv_bias,
                value_bias=config.qkv_bias,
                layerscale_value=1.0 if config.layer_scale_init_value is None else config.layer_scale_init_value,
                rope_theta=config.rope_base,
            )
        )

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTModel

    def prefix(self, peer: Peer) -> str:
        return ""

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        layer = "model.layer.*" if hasattr(peer, "model") else "layer.*"
        registers = "embeddings.register_tokens"
        none = constant(registers, lambda: torch.zeros(1, 0, config.hidden_size))
        return [
            same("vit.embeddings.class_token", "embeddings.cls_token"),
            same("vit.embeddings.register_tokens", registers) if config.num_register_tokens else none,
            constant("embeddings.mask_token", lambda: torch.zeros(1, 1, config.hidden_size)),
            patch_kernel(config, "embeddings.patch_embeddings.weight"),
            same("vit.embeddings.patch_embedding.projection.bias", "embeddings.patch_embeddings.bias"),
            *projections(config, *(f"{layer}.attention.{part}_proj" for part in "qkv")),
            same(f"{LAYER}.attention.out_proj.*", f"{layer}.attention.o_proj.*"),
            *_layer_rules(config, layer),
            same(f"{LAYER}.mlp.fc1.*", f"{layer}.mlp.up_proj.*"),
            same(f"{LAYER}.mlp.fc2.*", f"{layer}.mlp.down_proj.*"),
            same("vit.norm.*", "norm.*"),
        ]


SOURCES = [Dinov2(), Dinov2WithRegisters(), DINOv3ViT()]
