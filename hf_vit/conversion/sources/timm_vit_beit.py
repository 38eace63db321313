"""BEiT of timm (2106.08254, 2208.06366)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.timm_rules import common_fields, common_options, common_rules, norm_position
from hf_vit.conversion.vit_rules import LAYER, learned_positions, relative_bias
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel


class TimmBeit(Source):
    library = "timm"
    peers = ("Beit",)

    def config(self, peer: Peer) -> HfViTConfig:
        block = peer.blocks[0]
        schemes = {
            "learned": peer.pos_embed is not None,
            "relative_bias": peer.rel_pos_bias is not None,
            "relative_bias_per_layer": block.attn.relative_position_bias_table is not None,
        }
        return HfViTConfig(
            **common_fields(peer),
            drop_path_rate=getattr(peer.blocks[-1].drop_path1, "drop_prob", 0.0),
            layer_scale_init_value=block.init_values or None,
            qkv_bias=block.attn.q_bias is not None,
            key_bias=False,
            position_embedding=[name for name, is_used in schemes.items() if is_used] or "none",
            pooling_norm=norm_position(peer),
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        options: dict[str, Any] = {
            **common_options(config),
            "init_values": config.layer_scale_init_value or 0.0,
            "num_classes": 0 if isinstance(model, HfViTModel) else config.num_labels,
            "use_abs_pos_emb": "learned" in config.position_embeddings,
            "use_shared_rel_pos_bias": "relative_bias" in config.position_embeddings,
            "use_rel_pos_bias": "relative_bias_per_layer" in config.position_embeddings,
            "use_fc_norm": config.norm_after_pooling,
            "swiglu_mlp": config.hidden_act == "swiglu",
            "scale_mlp": config.mlp_hidden_norm,
        }
        return make_timm_model("beit_base_patch16_224", options)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        positions = [learned_positions(config, "pos_embed")] if "learned" in config.position_embeddings else []
        return [
            *positions,
            *common_rules(config, peer),
            same(f"{LAYER}.attention.qkv_proj.weight", "blocks.*.attn.qkv.weight"),
            same(f"{LAYER}.attention.query_bias", "blocks.*.attn.q_bias"),
            same(f"{LAYER}.attention.value_bias", "blocks.*.attn.v_bias"),
            relative_bias(config, "vit.relative_position_bias", "rel_pos_bias.relative_position_bias_table"),
            relative_bias(config, f"{LAYER}.relative_position_bias", "blocks.*.attn.relative_position_bias_table"),
        ]


SOURCES = [TimmBeit()]
