"""The parts that the families of Vision Transformers in timm share in their blocks, and rules for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_vit.conversion.rules import Peer, Rule, fused, same
from hf_vit.conversion.vit_rules import LAYER, patch_kernel
from hf_vit.models.configuration_hf_vit import HfViTConfig

POOLINGS = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
_GATES = {"SiLU": "swiglu", "GELU": "geglu", "GELUTanh": "geglu_tanh"}
# What timm's options call our activations, gated ones by their gate.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
}
_NORMS = {"LayerNorm": "layer_norm", "RmsNorm": "rms_norm"}


def check_choices(choices: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises `ValueError` for the first name whose value is none of those allowed: `{name: (value, allowed)}`."""
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def is_there(part: nn.Module | None) -> bool:
    """Whether a part does something."""
    return part is not None and not isinstance(part, nn.Identity)


def common_fields(peer: Peer) -> dict[str, Any]:
    """The fields of our configuration that a timm model with its usual patch embedding says in the same way in every
    family.

    Raises:
        ValueError: it has a part that ours lacks; the message names timm's field.
    """
    patches = peer.patch_embed
    check_choices(
        {
            "embed_layer": (type(patches).__name__, ("PatchEmbed",)),
            "embed_norm_layer": (type(patches.norm).__name__, ("Identity",)),
        }
    )
    return {
        **block_fields(peer),
        "image_size": list(patches.img_size),
        "patch_size": list(patches.patch_size),
        "num_channels": patches.proj.in_channels,
        "patch_bias": patches.proj.bias is not None,
        "patch_fit": _patch_fit(patches),
    }


def block_fields(peer: Peer) -> dict[str, Any]:
    """Those of them that its blocks, its pooling and its head say.

    Raises:
        ValueError: as [`common_fields`].
    """
    block = peer.blocks[0]
    check_choices(
        {
            "global_pool": (peer.global_pool, tuple(POOLINGS)),
            "norm_layer": (type(getattr(block, "norm1", None)).__name__, tuple(_NORMS)),
        }
    )
    if peer.global_pool == "map":
        _check_attention_pool(peer.attn_pool, block)
    return {
        "hidden_size": peer.embed_dim,
        "num_hidden_layers": len(peer.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_dropout_prob": block.attn.proj_drop.p,
        "attention_probs_dropout_prob": block.attn.attn_drop.p,
        "norm_type": _NORMS[type(block.norm1).__name__],
        "layer_norm_eps": block.norm1.eps,
        "proj_bias": block.attn.proj.bias is not None,
        "attention_output_norm": is_there(getattr(block.attn, "norm", None)),
        "pooling": POOLINGS[peer.global_pool],
        **_mlp_fields(block.mlp),
        **({"num_labels": peer.num_classes} if peer.num_classes else {}),
    }


def _check_attention_pool(pool: Any, block: Any) -> None:
    """Raises `ValueError` unless the pooling has heads and an MLP like those of the layers, as ours has."""
    check_choices(
        {
            "attn_pool_num_heads": (pool.num_heads, (block.attn.num_heads,)),
            "mlp_layer": (type(block.mlp).__name__, (type(pool.mlp).__name__,)),
            "attn_pool_mlp_ratio": (pool.mlp.fc2.in_features, (block.mlp.fc2.in_features,)),
            "act_layer": (type(block.mlp.act).__name__, (type(pool.mlp.act).__name__,)),
        }
    )


def _patch_fit(patches: Any) -> str:
    if patches.dynamic_img_pad:
        return "pad"
    return "crop" if any(map(int.__mod__, patches.img_size, patches.patch_size)) else "exact"


def _mlp_fields(mlp: Any) -> dict[str, Any]:
    kind, activation = type(mlp).__name__, type(getattr(mlp, "act", None)).__name__
    gated = {"SwiGLU": "fc1_g", "GluMlp": "fc1"}
    activations = _GATES if kind in gated else ACTIVATIONS
    check_choices(
        {
            "mlp_layer": (kind, ("Mlp", *gated)),
            "act_layer": (activation, tuple(activations)),
            "gate_last": (getattr(mlp, "gate_last", False), (False,)),
        }
    )
    first = getattr(mlp, gated.get(kind, "fc1"))
    return {
        "hidden_act": activations[activation],
        "intermediate_size": mlp.fc2.in_features,
        "mlp_bias": first.bias is not None,
        "mlp_hidden_norm": is_there(mlp.norm),
    }


def norm_position(peer: Peer, before: str = "norm", after: str = "fc_norm") -> str:
    """`pooling_norm` of a timm model with norms of these names.

    Raises:
        ValueError: it has both.
    """
    found = [is_there(getattr(peer, name, None)) for name in (before, after)]
    if all(found):
        raise ValueError(f"{after} must be one of Identity, got {type(getattr(peer, after)).__name__} beside {before}")
    return "before" if found[0] else "after" if found[1] else "none"


def common_options(config: HfViTConfig) -> dict[str, Any]:
    """Options of timm's models that say the fields of our configuration in the same way in every family.

    Raises:
        ValueError: timm has no such pooling or activation.
    """
    poolings: dict[Any, str] = dict(zip(POOLINGS.values(), POOLINGS))
    check_choices(
        {
            "pooling": (config.pooling, tuple(poolings)),
            "hidden_act": (config.hidden_act, tuple(ACTIVATION_NAMES)),
        }
    )
    return {
        "img_size": list(config.image_shape),
        "patch_size": list(config.patch_shape),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio(config.hidden_size, config.intermediate_size),
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale_init_value,
        "global_pool": poolings[config.pooling],
        "drop_path_rate": config.drop_path_rate,
        "proj_drop_rate": config.hidden_dropout_prob,
        "attn_drop_rate": config.attention_probs_dropout_prob,
    }


def mlp_ratio(hidden_size: int, intermediate_size: int) -> float:
    """The ratio of which timm, which cuts off what is behind the point, makes this width."""
    ratio = intermediate_size / hidden_size
    return ratio if int(hidden_size * ratio) == intermediate_size else (intermediate_size + 0.5) / hidden_size


def common_rules(config: HfViTConfig, peer: Peer) -> list[Rule]:
    """Rules for all that the families of timm call by the same names."""
    embeddings, pooler = "vit.embeddings", "vit.pooler.poolings.attention"
    return [
        patch_kernel(config, "patch_embed.proj.weight"),  # unless the family's own rules name another
        same(f"{embeddings}.patch_embedding.projection.bias", "patch_embed.proj.bias"),
        same(f"{embeddings}.class_token", "cls_token"),
        same(f"{embeddings}.distillation_token", "dist_token"),
        same(f"{embeddings}.register_tokens", "reg_token"),
        same(f"{embeddings}.norm.*", "norm_pre.*"),
        *block_rules(LAYER, "blocks.*", peer.blocks[0]),
        same("vit.norm.*", "fc_norm.*" if config.norm_after_pooling else "norm.*"),
        same(f"{pooler}.query", "attn_pool.latent"),
        same(f"{pooler}.q_proj.*", "attn_pool.q.*"),
        same(f"{pooler}.kv_proj.*", "attn_pool.kv.*"),
        same(f"{pooler}.out_proj.*", "attn_pool.proj.*"),
        same(f"{pooler}.norm.*", "attn_pool.norm.*"),
        same(f"{pooler}.mlp.*.*", "attn_pool.mlp.*.*"),
        same("classifier.*", "head.*"),
        same("distillation_head.*", "head_dist.*"),
    ]


def block_rules(layer: str, block: str, example: nn.Module) -> list[Rule]:
    """Rules for the norms, the MLP, the scales and the output projection of a block like the example."""
    rules = [
        same(f"{layer}.attention_norm.*", f"{block}.norm1.*"),
        same(f"{layer}.mlp_norm.*", f"{block}.norm2.*"),
        same(f"{layer}.attention.out_proj.*", f"{block}.attn.proj.*"),
        same(f"{layer}.attention.output_norm.*", f"{block}.attn.norm.*"),
        same(f"{layer}.mlp.norm.*", f"{block}.mlp.norm.*"),
        same(f"{layer}.mlp.fc2.*", f"{block}.mlp.fc2.*"),
    ]
    if hasattr(example.mlp, "fc1_g"):
        rules.append(fused(f"{layer}.mlp.fc1.*", f"{block}.mlp.fc1_g.*", f"{block}.mlp.fc1_x.*"))
    else:
        rules.append(same(f"{layer}.mlp.fc1.*", f"{block}.mlp.fc1.*"))
    scale = "ls{}.gamma" if hasattr(example, "ls1") else "gamma_{}"
    return [*rules, *(same(f"{layer}.layer_scale{i}.scale", f"{block}.{scale.format(i)}") for i in (1, 2))]


__all__ = [
    "ACTIVATION_NAMES",
    "block_fields",
    "block_rules",
    "check_choices",
    "common_fields",
    "common_options",
    "common_rules",
    "is_there",
    "mlp_ratio",
    "norm_position",
]
