"""timm's `VisionTransformer`, and DeiT's with a distillation token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Rule, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.vit_rules import learned_positions, patch_kernel
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_POOLINGS = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "ReLU": "relu", "SiLU": "silu"}
_ACTIVATION_NAMES = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}
# The widths of which a file of weights alone tells the architecture, by the sizes of DeiT (2012.12877, table 1).
_DEIT_SIZES = {192: "tiny", 384: "small", 768: "base"}
_NAMES_OF_WIDTH = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


def check_choices(choices: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises `ValueError` for the first name whose value is none of those allowed: `{name: (value, allowed)}`."""
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


class TimmVisionTransformer(Source):
    library = "timm"
    peers = ("VisionTransformer", "VisionTransformerDistilled")

    def config(self, peer: nn.Module) -> HfViTConfig:
        self._check(peer)
        block = peer.blocks[0]
        norms = {"before": isinstance(peer.norm, nn.LayerNorm), "after": isinstance(peer.fc_norm, nn.LayerNorm)}
        has_positions = peer.pos_embed is not None
        return HfViTConfig(
            hidden_size=peer.embed_dim,
            num_hidden_layers=len(peer.blocks),
            num_attention_heads=block.attn.num_heads,
            intermediate_size=block.mlp.fc1.out_features,
            hidden_act=_ACTIVATIONS[type(block.mlp.act).__name__],
            hidden_dropout_prob=block.attn.proj_drop.p,
            attention_probs_dropout_prob=block.attn.attn_drop.p,
            drop_path_rate=getattr(peer.blocks[-1].drop_path1, "drop_prob", 0.0),
            layer_scale_init_value=getattr(block.ls1, "init_values", None),
            layer_norm_eps=block.norm1.eps,
            image_size=list(peer.patch_embed.img_size),
            patch_size=list(peer.patch_embed.patch_size),
            num_channels=peer.patch_embed.proj.in_channels,
            qkv_bias=block.attn.qkv.bias is not None,
            qk_norm=isinstance(block.attn.q_norm, nn.LayerNorm),
            position_embedding="learned" if has_positions else "none",
            position_embedding_on_prefix=not peer.no_embed_class if has_positions else None,
            use_class_token=peer.has_class_token,
            use_distillation_token=hasattr(peer, "dist_token"),
            num_register_tokens=peer.num_reg_tokens,
            pooling=_POOLINGS[peer.global_pool],
            pooling_norm=next((position for position, present in norms.items() if present), None),
            **({"num_labels": peer.num_classes} if peer.num_classes else {}),
        )

    @staticmethod
    def _check(peer: nn.Module) -> None:
        block = peer.blocks[0]
        check_choices(
            {
                "global_pool": (peer.global_pool, tuple(_POOLINGS)),
                "act_layer": (type(getattr(block.mlp, "act", None)).__name__, tuple(_ACTIVATIONS)),
                "block_fn": (type(block).__name__, ("Block",)),
                "pool_include_prefix": (peer.pool_include_prefix, (False,)),
                "pre_norm": (not isinstance(peer.norm_pre, nn.Identity), (False,)),
            }
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config = model.config
        size = _NAMES_OF_WIDTH.get(config.hidden_size, "base")
        pooling = dict(zip(_POOLINGS.values(), _POOLINGS)).get(config.pooling)
        activation = _ACTIVATION_NAMES.get(config.hidden_act)
        check_choices(
            {
                "pooling": (config.pooling, tuple(_POOLINGS.values())),
                "hidden_act": (config.hidden_act, tuple(_ACTIVATION_NAMES)),
                "position_embedding": (config.position_embedding, ("learned", "none")),
            }
        )
        options: dict[str, Any] = {
            "img_size": list(config.image_shape),
            "patch_size": list(config.patch_shape),
            "in_chans": config.num_channels,
            "num_classes": 0 if isinstance(model, HfViTModel) else config.num_labels,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "qkv_bias": config.qkv_bias,
            "qk_norm": config.qk_norm,
            "init_values": config.layer_scale_init_value,
            "class_token": config.use_class_token,
            "no_embed_class": not config.num_prefix_positions("learned"),
            "reg_tokens": config.num_register_tokens,
            "pos_embed": "learn" if config.position_embedding == "learned" else "none",
            "global_pool": pooling,
            "act_layer": activation,
            "drop_path_rate": config.drop_path_rate,
            "proj_drop_rate": config.hidden_dropout_prob,
            "attn_drop_rate": config.attention_probs_dropout_prob,
        }
        if config.norm_after_pooling != (pooling in ("avg", "max")):
            options["fc_norm"] = config.norm_after_pooling
        if config.layer_norm_eps != 1e-6:
            raise ValueError(f"layer_norm_eps must be 1e-6, got {config.layer_norm_eps}")
        name = f"deit_{size}_distilled" if config.use_distillation_token else f"vit_{size}"
        patch = {"huge": 14}.get(size, 16)
        name = "deit_base_distilled_patch16_224" if name.startswith("deit") else f"{name}_patch{patch}_224"
        return make_timm_model(name, options)

    def model_class(self, peer: nn.Module) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: nn.Module) -> list[Rule]:
        embeddings, layer, pooler = "vit.embeddings", "vit.layers.*", "vit.pooler.poolings.attention"
        positions = [learned_positions(config, "pos_embed")] if config.position_embedding == "learned" else []
        norm = "fc_norm.*" if config.norm_after_pooling else "norm.*"
        return [
            patch_kernel(config, "patch_embed.proj.weight"),
            same(f"{embeddings}.patch_embedding.projection.bias", "patch_embed.proj.bias"),
            same(f"{embeddings}.class_token", "cls_token"),
            same(f"{embeddings}.distillation_token", "dist_token"),
            same(f"{embeddings}.register_tokens", "reg_token"),
            *positions,
            same(f"{layer}.attention_norm.*", "blocks.*.norm1.*"),
            same(f"{layer}.mlp_norm.*", "blocks.*.norm2.*"),
            same(f"{layer}.attention.qkv_proj.*", "blocks.*.attn.qkv.*"),
            same(f"{layer}.attention.out_proj.*", "blocks.*.attn.proj.*"),
            same(f"{layer}.attention.q_norm.*", "blocks.*.attn.q_norm.*"),
            same(f"{layer}.attention.k_norm.*", "blocks.*.attn.k_norm.*"),
            same(f"{layer}.mlp.fc1.*", "blocks.*.mlp.fc1.*"),
            same(f"{layer}.mlp.fc2.*", "blocks.*.mlp.fc2.*"),
            same(f"{layer}.layer_scale1.scale", "blocks.*.ls1.gamma"),
            same(f"{layer}.layer_scale2.scale", "blocks.*.ls2.gamma"),
            same("vit.norm.*", norm),
            same(f"{pooler}.query", "attn_pool.latent"),
            same(f"{pooler}.q_proj.*", "attn_pool.q.*"),
            same(f"{pooler}.kv_proj.*", "attn_pool.kv.*"),
            same(f"{pooler}.out_proj.*", "attn_pool.proj.*"),
            same(f"{pooler}.norm.*", "attn_pool.norm.*"),
            same(f"{pooler}.mlp.fc1.*", "attn_pool.mlp.fc1.*"),
            same(f"{pooler}.mlp.fc2.*", "attn_pool.mlp.fc2.*"),
            same("classifier.*", "head.*"),
            same("distillation_head.*", "head_dist.*"),
        ]

    def guess(self, shapes: Mapping[str, torch.Size]) -> nn.Module | None:
        """DeiT, whose published files hold the weights alone; heads are 64 wide in all of them."""
        if not {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(shapes):
            return None
        if "blocks_token_only.0.attn.q.weight" in shapes or "blocks.0.ls1.gamma" in shapes:
            return None
        width, channels, *patch = shapes["patch_embed.proj.weight"]
        is_distilled = "dist_token" in shapes
        rows = math.isqrt(shapes["pos_embed"][1] - 1 - int(is_distilled))
        options = {
            "img_size": [rows * length for length in patch],
            "patch_size": list(patch),
            "in_chans": channels,
            "embed_dim": width,
            "depth": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            "num_heads": max(width // 64, 1),
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
            "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        }
        size = _DEIT_SIZES.get(width, "base")
        return make_timm_model(f"deit_{size}_{'distilled_' if is_distilled else ''}patch16_224", options)


SOURCES = [TimmVisionTransformer()]
