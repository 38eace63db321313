"""timm's `VisionTransformer`, and DeiT's with a distillation token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.timm_rules import (
    ACTIVATION_NAMES,
    check_choices,
    common_fields,
    common_options,
    common_rules,
    is_there,
    mlp_ratio,
    norm_position,
)
from hf_vit.conversion.vit_rules import LAYER, learned_positions
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel
from hf_vit.models.strict_config import GATED_ACTIVATIONS

# The widths of which a file of weights alone tells the architecture, by the sizes of DeiT (2012.12877, table 1).
_DEIT_SIZES = {192: "tiny", 384: "small", 768: "base"}
# Of DeiT III (2204.07118, table 2).
_DEIT_III_SIZES = {384: "small_patch16", 512: "medium_patch16", 1024: "large_patch16", 1280: "huge_patch14"}
_DEIT_HEADS = {1280: 16}
_NAMES_OF_WIDTH = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


class TimmVisionTransformer(Source):
    library = "timm"
    peers = ("VisionTransformer", "VisionTransformerDistilled")

    def config(self, peer: Peer) -> HfViTConfig:
        block = peer.blocks[0]
        check_choices(
            {
                "block_fn": (type(block).__name__, ("Block",)),
                "attn_layer": (type(getattr(block, "attn", None)).__name__, ("Attention",)),
                "pool_include_prefix": (peer.pool_include_prefix, (False,)),
            }
        )
        has_positions = peer.pos_embed is not None
        return HfViTConfig(
            **common_fields(peer),
            drop_path_rate=getattr(peer.blocks[-1].drop_path1, "drop_prob", 0.0),
            layer_scale_init_value=getattr(block.ls1, "init_values", None),
            qkv_bias=block.attn.qkv.bias is not None,
            qk_norm=is_there(block.attn.q_norm),
            embedding_norm=is_there(peer.norm_pre),
            position_embedding="learned" if has_positions else "none",
            position_embedding_on_prefix=not peer.no_embed_class if has_positions else None,
            use_class_token=peer.has_class_token,
            use_distillation_token=hasattr(peer, "dist_token"),
            num_register_tokens=peer.num_reg_tokens,
            pooling_norm=norm_position(peer),
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        check_choices({"position_embedding": (config.position_embedding, ("learned", "none"))})
        options: dict[str, Any] = {
            **common_options(config),
            "init_values": config.layer_scale_init_value or 0.0,  # timm overlooks None, and some architectures have it
            "num_classes": 0 if isinstance(model, HfViTModel) else config.num_labels,
            "qk_norm": config.qk_norm,
            "class_token": config.use_class_token,
            "no_embed_class": not config.num_prefix_positions("learned"),
            "reg_tokens": config.num_register_tokens,
            "pos_embed": "learn" if config.position_embedding == "learned" else "none",
        }
        options.update(_options_beside_the_defaults(config, options["global_pool"]))
        return make_timm_model(_name_of(config), options)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        positions = [learned_positions(config, "pos_embed")] if config.position_embedding == "learned" else []
        return [
            *positions,
            *common_rules(config, peer),
            same(f"{LAYER}.attention.qkv_proj.*", "blocks.*.attn.qkv.*"),
            same(f"{LAYER}.attention.q_norm.*", "blocks.*.attn.q_norm.*"),
            same(f"{LAYER}.attention.k_norm.*", "blocks.*.attn.k_norm.*"),
            # As DeiT III's own files call them.
            *(same(f"{LAYER}.layer_scale{i}.scale", f"blocks.*.gamma_{i}") for i in (1, 2)),
        ]

    def guess(self, shapes: Mapping[str, torch.Size]) -> nn.Module | None:
        """DeiT and DeiT III, whose published files hold the weights alone; but for the largest, their heads are 64
        wide."""
        if not {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(shapes):
            return None
        if "blocks_token_only.0.attn.q.weight" in shapes or "blocks.0.ls1.gamma" in shapes:
            return None
        width, channels, *patch = shapes["patch_embed.proj.weight"]
        is_third = "blocks.0.gamma_1" in shapes  # whose class token has no position
        is_distilled = "dist_token" in shapes
        rows = math.isqrt(shapes["pos_embed"][1] - (0 if is_third else 1 + int(is_distilled)))
        options = {
            "img_size": [rows * length for length in patch],
            "patch_size": list(patch),
            "in_chans": channels,
            "embed_dim": width,
            "depth": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            "num_heads": _DEIT_HEADS.get(width, max(width // 64, 1)),
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
            "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        }
        if is_third:
            return make_timm_model(f"deit3_{_DEIT_III_SIZES.get(width, 'base_patch16')}_224", options)
        size = _DEIT_SIZES.get(width, "base")
        return make_timm_model(f"deit_{size}_{'distilled_' if is_distilled else ''}patch16_224", options)


def _options_beside_the_defaults(config: HfViTConfig, pooling: str) -> dict[str, Any]:
    """Options that DeiT's class, which knows few, need not be told."""
    options: dict[str, Any] = {"act_layer": ACTIVATION_NAMES[config.hidden_act]}
    if config.hidden_act in GATED_ACTIVATIONS:  # of which timm counts both halves
        options["mlp_ratio"] = mlp_ratio(config.hidden_size, 2 * config.intermediate_size)
    if config.norm_type == "rms_norm":
        options["norm_layer"] = "rmsnorm"
    if config.pooling_norm == "none":
        options["final_norm"] = False
    elif config.norm_after_pooling != (pooling in ("avg", "max")):
        options["fc_norm"] = config.norm_after_pooling
    if config.embedding_norm or config.layer_norm_eps == 1e-5:  # which come together in timm's names
        options["pre_norm"] = config.embedding_norm
    named = {
        "scale_attn_norm": config.attention_output_norm,
        "scale_mlp_norm": config.mlp_hidden_norm,
        "dynamic_img_pad": config.patch_fit == "pad",
    }
    options.update({name: True for name, value in named.items() if value})
    return options if config.proj_bias else {**options, "proj_bias": False}


def _name_of(config: HfViTConfig) -> str:
    """The architecture that brings what options cannot say: a class of layers or an epsilon."""
    if config.layer_norm_eps not in (1e-6, 1e-5):
        raise ValueError(f"layer_norm_eps must be one of 1e-06, 1e-05, got {config.layer_norm_eps}")
    if config.use_distillation_token:
        return "deit_base_distilled_patch16_224"
    if config.hidden_act in GATED_ACTIVATIONS:
        return "vit_giant_patch14_dinov2"
    size = _NAMES_OF_WIDTH.get(config.hidden_size, "base")
    if config.layer_norm_eps == 1e-5:
        return "vit_base_patch16_clip_224"
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


SOURCES = [TimmVisionTransformer()]
