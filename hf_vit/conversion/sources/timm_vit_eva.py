"""timm's `Eva`: EVA (2211.07636), EVA-02 (2303.11331), DINOv3 (2508.10104) and RoPE-ViT (2403.13298).

Shapes: H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, reshaped, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.timm_models import make_timm_model
from hf_vit.conversion.timm_rules import (
    check_choices,
    common_fields,
    common_options,
    common_rules,
    is_there,
    norm_position,
)
from hf_vit.conversion.vit_rules import LAYER, learned_positions
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_ROTARY = {
    "RotaryEmbeddingDinoV3": "rope_2d",
    "RotaryEmbeddingCat": "rope_axial",
    "RotaryEmbeddingMixed": "rope_mixed",
}
_ROPE_TYPES = {"rope_2d": "dinov3", "rope_axial": "cat", "rope_mixed": "mixed"}


class TimmEva(Source):
    """Channels of queries and keys that turn together lie side by side in most of timm's models, and half a head apart
    in ours: their order changes on the way."""

    library = "timm"
    peers = ("Eva",)

    def config(self, peer: Peer) -> HfViTConfig:
        block = peer.blocks[0]
        check_choices({"use_post_norm": (type(block).__name__, ("EvaBlock",))})
        check_choices(
            {
                "gated_attn": (block.attn.gate is not None, (False,)),
                "num_kv_heads": (getattr(block.attn, "num_kv_groups", 1), (1,)),
                "attn_only_layer_scale": ((block.gamma_1 is None) != (block.gamma_2 is None), (False,)),
                "global_pool": (peer.global_pool, ("token", "avg", "max")),
                "rope_type": (type(peer.rope).__name__, (*_ROTARY, "NoneType")),
            }
        )
        schemes = ["learned"] if peer.pos_embed is not None else []
        schemes += [] if peer.rope is None else [_ROTARY[type(peer.rope).__name__]]
        return HfViTConfig(
            **common_fields(peer),
            **_rotary_fields(peer.rope),
            drop_path_rate=getattr(peer.blocks[-1].drop_path1, "drop_prob", 0.0),
            layer_scale_init_value=block.init_values,
            qkv_bias=_has_bias(block.attn),
            key_bias=type(block.attn).__name__ == "AttentionRope",
            qk_norm=is_there(block.attn.q_norm),
            embedding_norm=is_there(peer.norm_pre),
            position_embedding=schemes or "none",
            position_embedding_on_prefix=False if peer.no_embed_class and schemes else None,
            use_class_token=peer.cls_token is not None,
            num_register_tokens=0 if peer.reg_token is None else peer.reg_token.shape[1],
            pooling_norm=norm_position(peer),
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        scheme = config.rotary_position
        # An epsilon is no option, and what is None timm takes from the architecture.
        has_scale = config.layer_scale_init_value is not None
        names = {
            1e-6: "eva_giant_patch14_224",
            1e-5: "vit_small_patch16_dinov3" if has_scale else "vit_pe_spatial_base_patch16_512",
        }
        check_choices({"layer_norm_eps": (config.layer_norm_eps, tuple(names))})
        check_choices({"hidden_act": (config.hidden_act, ("gelu", "swiglu"))})
        norm_layer = {"norm_layer": "rmsnorm"} if config.norm_type == "rms_norm" else {}
        options: dict[str, Any] = {
            **common_options(config),
            **norm_layer,
            "num_classes": 0 if isinstance(model, HfViTModel) else config.num_labels,
            "attn_type": "rope" if config.key_bias else "eva",
            "qk_norm": config.qk_norm,
            "swiglu_mlp": config.hidden_act == "swiglu",
            "scale_mlp": config.mlp_hidden_norm,
            "scale_attn_inner": config.attention_output_norm,
            "class_token": config.use_class_token,
            "num_reg_tokens": config.num_register_tokens,
            "no_embed_class": not config.num_prefix_positions("learned"),
            "use_abs_pos_emb": "learned" in config.position_embeddings,
            "use_rot_pos_emb": scheme is not None,
            "rope_type": _ROPE_TYPES.get(scheme, "cat"),
            "rope_temperature": config.rope_base,
            "rope_rotate_half": scheme == "rope_2d",
            "rope_grid_indexing": "ij",
            "rope_grid_offset": config.rope_grid_offset if scheme == "rope_axial" else 0.0,
            "ref_feat_shape": list(config.position_grid_size) if config.position_grid_size else None,
            "use_pre_transformer_norm": config.embedding_norm,
            "use_post_transformer_norm": config.norm_position == "before",
            "use_fc_norm": config.norm_position == "after",
            "dynamic_img_size": False,
            "dynamic_img_pad": config.patch_fit == "pad",
        }
        return make_timm_model(names[config.layer_norm_eps], options)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if peer.num_classes else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        attention, theirs = f"{LAYER}.attention", "blocks.*.attn"
        order = _channel_order(peer, config.hidden_size // config.num_attention_heads)
        turn, turn_back = (
            _turning(order, config.num_attention_heads),
            _turning(order.argsort(), config.num_attention_heads),
        )
        positions = [learned_positions(config, "pos_embed")] if "learned" in config.position_embeddings else []
        frequencies = tuple(f"vit.layers.{i}.rotary_embedding.frequencies" for i in range(config.num_hidden_layers))
        flips = [0] if getattr(peer.rope, "grid_indexing", "ij") == "xy" else []

        def turned(ours: str, theirs: str) -> Rule:
            return reshaped(f"{attention}.{ours}", theirs, turn, turn_back)

        return [
            *positions,
            *common_rules(config, peer),
            # Of queries, keys and values in one, the values stay in order.
            reshaped(
                f"{attention}.qkv_proj.*",
                f"{theirs}.qkv.*",
                lambda tensor: torch.cat([*map(turn, tensor.chunk(3)[:2]), tensor.chunk(3)[2]]),
                lambda tensor: torch.cat([*map(turn_back, tensor.chunk(3)[:2]), tensor.chunk(3)[2]]),
            ),
            turned("query_bias", f"{theirs}.q_bias"),
            same(f"{attention}.value_bias", f"{theirs}.v_bias"),
            # What timm keeps in layers of their own goes back as one.
            *(_separate(attention, theirs, kind, turn) for kind in ("weight", "bias")),
            turned("query_bias", f"{theirs}.q_proj.bias"),
            same(f"{attention}.value_bias", f"{theirs}.v_proj.bias"),
            turned("q_norm.*", f"{theirs}.q_norm.*"),
            turned("k_norm.*", f"{theirs}.k_norm.*"),
            Rule(
                frequencies,
                ("rope.freqs",),
                lambda tensors: [part.flip(flips).clone() for part in tensors[0].unbind(1)],
                lambda tensors: [torch.stack(tensors, dim=1).flip(flips)],
            ),
        ]


def _has_bias(attention: Any) -> bool:
    if attention.qkv is None:
        return attention.q_proj.bias is not None
    return attention.qkv.bias is not None or getattr(attention, "q_bias", None) is not None


def _rotary_fields(rope: Any) -> dict[str, Any]:
    """The fields of our configuration that say how a rotary embedding of timm turns.

    Raises:
        ValueError: ours cannot turn so.
    """
    if rope is None:
        return {}
    fields: dict[str, Any] = {"rope_theta": float(rope.temperature)}
    kind = type(rope).__name__
    if kind == "RotaryEmbeddingCat":
        check_choices({"in_pixels": (rope.in_pixels, (False,)), "grid_type": (rope.grid_type, ("index",))})
        fields["rope_grid_offset"] = float(rope.grid_offset)
        fields["position_grid_size"] = list(rope.ref_feat_shape) if rope.ref_feat_shape else None
    if kind == "RotaryEmbeddingDinoV3":
        check_choices(
            {
                "min_period": (rope.min_period, (None,)),
                "normalize_coords": (rope.normalize_coords, ("separate",)),
                "rope_grid_offset": (rope.grid_offset, (0.0,)),
            }
        )
    return fields


def _channel_order(peer: Peer, head_size: int) -> torch.Tensor:
    """Which of timm's channels each of ours is, within a head, shape (K,)."""
    half = head_size // 2
    order = torch.arange(half)
    if peer.rope is None:
        return torch.arange(head_size)
    swaps_axes = getattr(peer.rope, "grid_indexing", "ij") == "xy" and not getattr(peer, "rope_mixed", False)
    if swaps_axes:
        order = order.roll(-(half // 2))
    if peer.blocks[0].attn.rotate_half:
        return torch.cat((order, order + half))
    return torch.cat((2 * order, 2 * order + 1))


def _turning(order: torch.Tensor, num_heads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reorders the channels of each head along the first axis, which is those of all heads or of one."""

    def turn(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[0] == len(order):
            return tensor[order]
        return tensor.unflatten(0, (num_heads, len(order)))[:, order].flatten(0, 1)

    return turn


def _separate(attention: str, theirs: str, kind: str, turn: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    """Queries, keys and values of layers of their own, which become ours."""
    names = tuple(f"{theirs}.{part}_proj.{kind}" for part in "qkv")
    return Rule(
        (f"{attention}.qkv_proj.{kind}",),
        names,
        lambda tensors: [torch.cat([turn(tensors[0]), turn(tensors[1]), tensors[2]])],
    )


SOURCES = [TimmEva()]
