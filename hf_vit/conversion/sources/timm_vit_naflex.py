"""timm's `NaFlexVit`, for images of one shape: a Vision Transformer whose positions are laid out on a grid."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, reshaped, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.timm_rules import (
    block_fields,
    check_choices,
    common_options,
    common_rules,
    is_there,
    norm_position,
)
from hf_vit.conversion.vit_rules import LAYER, POSITIONS, channels_last_kernel, patch_kernel
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_POSITIONS = {"learned": "learned", "factorized": "learned_2d", "none": "none"}


class TimmNaFlexVit(Source):
    """Prefix tokens never have positions."""

    library = "timm"
    peers = ("NaFlexVit",)

    def config(self, peer: Peer) -> HfViTConfig:
        embeds, block = peer.embeds, peer.blocks[0]
        check_choices(
            {
                "block_fn": (type(block).__name__, ("Block",)),
                "attn_layer": (type(getattr(block, "attn", None)).__name__, ("Attention",)),
                "rope_type": (type(peer.rope).__name__, ("NoneType",)),
                "pool_include_prefix": (peer.pool_include_prefix, (False,)),
                "pos_embed": (embeds.pos_embed_type, tuple(_POSITIONS)),
                "pos_embed_ar_preserving": (embeds.pos_embed_ar_preserving, (False,)),
                "pos_embed_interp_mode": (embeds.pos_embed_interp_mode, ("bicubic",)),
                "pos_embed_align_corners": (embeds.pos_embed_align_corners, (False,)),
                "pos_embed_antialias": (embeds.pos_embed_antialias, (True,)),
                "pos_embed_grid_size": (embeds.pos_embed_grid_size is None, (False,)),
                "input_norm_layer": (type(embeds.norm_input).__name__, ("NoneType",)),
                "embed_norm_layer": (type(embeds.norm).__name__, ("Identity",)),
            }
        )
        patch = list(embeds.patch_size)
        return HfViTConfig(
            **block_fields(peer),
            image_size=[count * length for count, length in zip(embeds.pos_embed_grid_size, patch)],
            patch_size=patch,
            num_channels=embeds.in_chans,
            patch_bias=embeds.proj.bias is not None,
            patch_fit="pad" if embeds.dynamic_img_pad else "exact",
            drop_path_rate=getattr(peer.blocks[-1].drop_path1, "drop_prob", 0.0),
            layer_scale_init_value=getattr(block.ls1, "init_values", None),
            qkv_bias=block.attn.qkv.bias is not None,
            qk_norm=is_there(block.attn.q_norm),
            embedding_norm=is_there(peer.norm_pre),
            position_embedding=_POSITIONS[embeds.pos_embed_type],
            position_embedding_on_prefix=False,
            use_class_token=peer.has_class_token,
            num_register_tokens=peer.num_reg_tokens,
            pooling_norm=norm_position(peer),
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        check_choices({"position_embedding": (config.position_embedding, tuple(_POSITIONS.values()))})
        options = common_options(config)
        del options["img_size"]
        options.update(
            num_classes=0 if isinstance(model, HfViTModel) else config.num_labels,
            init_values=config.layer_scale_init_value or 0.0,
            qk_norm=config.qk_norm,
            proj_bias=config.proj_bias,
            class_token=config.use_class_token,
            reg_tokens=config.num_register_tokens,
            pos_embed=dict(zip(_POSITIONS.values(), _POSITIONS))[config.position_embedding],
            pos_embed_grid_size=list(config.grid_size),
            pre_norm=config.embedding_norm,
            final_norm=config.norm_position != "none",
            fc_norm=config.norm_after_pooling,
            dynamic_img_pad=config.patch_fit == "pad",
        )
        return make_timm_model("naflexvit_base_patch16_gap", options)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        embeds = peer.embeds
        ours, theirs = "vit.embeddings.patch_embedding.projection", "embeds.proj"
        if not embeds.is_linear:
            kernel = patch_kernel(config, f"{theirs}.weight")
        elif embeds.channels_last:
            kernel = channels_last_kernel(config, f"{theirs}.weight")
        else:
            kernel = same(f"{ours}.weight", f"{theirs}.weight")
        return [
            kernel,
            same(f"{ours}.bias", f"{theirs}.bias"),
            same("vit.embeddings.class_token", "embeds.cls_token"),
            same("vit.embeddings.register_tokens", "embeds.reg_token"),
            reshaped(f"{POSITIONS}.grid", "embeds.pos_embed", lambda table: table[0], lambda table: table[None]),
            reshaped(
                f"{POSITIONS}.rows", "embeds.pos_embed_y", lambda rows: rows[0][:, None], lambda rows: rows[None, :, 0]
            ),
            same(f"{POSITIONS}.columns", "embeds.pos_embed_x"),
            *common_rules(config, peer),
            same(f"{LAYER}.attention.qkv_proj.*", "blocks.*.attn.qkv.*"),
            same(f"{LAYER}.attention.q_norm.*", "blocks.*.attn.q_norm.*"),
            same(f"{LAYER}.attention.k_norm.*", "blocks.*.attn.k_norm.*"),
        ]


SOURCES = [TimmNaFlexVit()]
