"""CaiT (2103.17239), timm's and the original's, whose weights have the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, fused, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.timm_rules import block_rules, check_choices, common_fields, common_options, common_rules
from hf_vit.conversion.vit_rules import LAYER, learned_positions
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_CLASS_LAYER, _CLASS_BLOCK = "vit.class_layers.*", "blocks_token_only.*"


class TimmCait(Source):
    library = "timm"
    peers = ("Cait",)

    def config(self, peer: Peer) -> HfViTConfig:
        block, class_block = peer.blocks[0], peer.blocks_token_only[0]
        check_choices(
            {
                "attn_block": (type(block.attn).__name__, ("TalkingHeadAttn",)),
                "attn_block_token_only": (type(class_block.attn).__name__, ("ClassAttn",)),
                "mlp_ratio_token_only": (class_block.mlp.fc2.in_features, (block.mlp.fc2.in_features,)),
            }
        )
        return HfViTConfig(
            **common_fields(peer),
            # Not a field of timm's model, and of no weight here: layers start with it.
            layer_scale_init_value=1e-5 if len(peer.blocks) <= 24 else 1e-6,
            drop_path_rate=getattr(block.drop_path, "drop_prob", 0.0),
            qkv_bias=block.attn.qkv.bias is not None,
            talking_heads=True,
            num_class_layers=len(peer.blocks_token_only),
            pooling_norm="before",
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        options = {
            **common_options(config),
            "num_classes": 0 if isinstance(model, HfViTModel) else config.num_labels,
            "mlp_ratio_token_only": config.intermediate_size / config.hidden_size,
            "depth_token_only": config.num_class_layers,
        }
        if not config.num_class_layers:
            raise ValueError("num_class_layers must be at least 1, got 0")
        if config.layer_scale_init_value is None:
            raise ValueError("layer_scale_init_value must be above 0, got None")
        check_choices({"hidden_act": (config.hidden_act, ("gelu",)), "pooling": (config.pooling, ("cls", "mean"))})
        return make_timm_model("cait_xxs24_224", options)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        attention = f"{_CLASS_LAYER}.attention"
        return [
            learned_positions(config, "pos_embed"),
            *common_rules(config, peer),
            same(f"{LAYER}.attention.qkv_proj.*", "blocks.*.attn.qkv.*"),
            same(f"{LAYER}.attention.score_mixing.*", "blocks.*.attn.proj_l.*"),
            same(f"{LAYER}.attention.weight_mixing.*", "blocks.*.attn.proj_w.*"),
            *block_rules(_CLASS_LAYER, _CLASS_BLOCK, peer.blocks_token_only[0]),
            same(f"{attention}.q_proj.*", f"{_CLASS_BLOCK}.attn.q.*"),
            fused(f"{attention}.kv_proj.*", f"{_CLASS_BLOCK}.attn.k.*", f"{_CLASS_BLOCK}.attn.v.*"),
        ]

    def guess(self, shapes: Mapping[str, torch.Size]) -> nn.Module | None:
        """CaiT, whose published files hold the weights alone."""
        if not {"pos_embed", "blocks_token_only.0.attn.q.weight", "blocks.0.attn.proj_l.weight"} <= set(shapes):
            return None
        width, channels, *patch = shapes["patch_embed.proj.weight"]
        rows = math.isqrt(shapes["pos_embed"][1])
        options = {
            "img_size": [rows * length for length in patch],
            "patch_size": list(patch),
            "in_chans": channels,
            "embed_dim": width,
            "depth": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            "depth_token_only": len({name.split(".")[1] for name in shapes if name.startswith("blocks_token_only.")}),
            "num_heads": shapes["blocks.0.attn.proj_l.weight"][0],
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
            "mlp_ratio_token_only": shapes["blocks_token_only.0.mlp.fc1.weight"][0] / width,
            "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        }
        return make_timm_model("cait_xxs24_224", options)


SOURCES = [TimmCait()]
