"""Weights of timm's and transformers' Vision Transformers, brought into ours."""

import re

import torch
from torch import nn

from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification

_TIMM_POOLINGS = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}
_TIMM_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "ReLU": "relu", "SiLU": "silu"}

# Applied in turn to each name of the peer's state dict.
_TIMM_NAMES = (
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embedding.projection."),
    (r"^cls_token$", "vit.embeddings.class_token"),
    (r"^dist_token$", "vit.embeddings.distillation_token"),
    (r"^reg_token$", "vit.embeddings.register_tokens"),
    (r"^pos_embed$", "vit.embeddings.position_embedding"),
    (r"^blocks\.", "vit.layers."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.qkv\.", ".attention.qkv_proj."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.attn\.([qk])_norm\.", r".attention.\1_norm."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.scale"),
    (r"^(fc_)?norm\.", "vit.norm."),
    (r"^attn_pool\.latent$", "vit.pooler.poolings.attention.query"),
    (r"^attn_pool\.(q|kv)\.", r"vit.pooler.poolings.attention.\1_proj."),
    (r"^attn_pool\.proj\.", "vit.pooler.poolings.attention.out_proj."),
    (r"^attn_pool\.", "vit.pooler.poolings.attention."),
    (r"^head\.", "classifier."),
    (r"^head_dist\.", "distillation_head."),
)
_TRANSFORMERS_NAMES = (
    (r"^(vit|deit)\.", "vit."),
    (r"\.cls_token$", ".class_token"),
    (r"\.patch_embeddings\.", ".patch_embedding."),
    (r"\.position_embeddings$", ".position_embedding"),
    (r"\.attention\.o_proj\.", ".attention.out_proj."),
    (r"\.layernorm_before\.", ".attention_norm."),
    (r"\.layernorm_after\.", ".mlp_norm."),
    (r"\.layernorm\.", ".norm."),
    (r"^cls_classifier\.", "classifier."),
    (r"^distillation_classifier\.", "distillation_head."),
)

_SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "id2label",
    "label2id",
    "problem_type",
)


def from_timm(model: nn.Module) -> HfViTForImageClassification:
    """Our model with the weights of a `timm.models.VisionTransformer` (class, average, max or attention pooling,
    registers, layer scale, query and key norm, DeiT's distillation token), in eval mode.

    Raises:
        ValueError: if the model has a part ours lacks, or pools or activates in another way.
    """
    _check_timm(model)
    block = model.blocks[0]
    norms = {"before": isinstance(model.norm, nn.LayerNorm), "after": isinstance(model.fc_norm, nn.LayerNorm)}
    config = HfViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        hidden_act=_TIMM_ACTIVATIONS[type(block.mlp.act).__name__],
        hidden_dropout_prob=block.attn.proj_drop.p,
        attention_probs_dropout_prob=block.attn.attn_drop.p,
        drop_path_rate=getattr(model.blocks[-1].drop_path1, "drop_prob", 0.0),
        layer_scale_init_value=float(block.ls1.gamma.abs().mean()) if hasattr(block.ls1, "gamma") else None,
        layer_norm_eps=block.norm1.eps,
        image_size=list(model.patch_embed.img_size),
        patch_size=list(model.patch_embed.patch_size),
        num_channels=model.patch_embed.proj.in_channels,
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=isinstance(block.attn.q_norm, nn.LayerNorm),
        position_embedding="none" if model.pos_embed is None else "learned",
        position_embedding_on_prefix=None if model.pos_embed is None else not model.no_embed_class,
        use_class_token=model.has_class_token,
        use_distillation_token=hasattr(model, "dist_token"),
        num_register_tokens=model.num_reg_tokens,
        pooling=_TIMM_POOLINGS[model.global_pool],
        pooling_norm=next((position for position, present in norms.items() if present), None),
        num_labels=model.num_classes,
    )
    return _with_weights(config, renamed(model.state_dict(), _TIMM_NAMES))


def _check_timm(model: nn.Module):
    if not hasattr(model, "global_pool") or not hasattr(model, "num_reg_tokens"):
        raise ValueError(f"model must be a timm VisionTransformer, got {type(model).__name__}")
    block = model.blocks[0]
    activation = type(getattr(block.mlp, "act", None)).__name__
    checks = {
        "global_pool": (model.global_pool, _TIMM_POOLINGS),
        "act_layer": (activation, _TIMM_ACTIVATIONS),
        "block_fn": (type(block).__name__, ("Block",)),
        "pool_include_prefix": (model.pool_include_prefix, (False,)),
        "pre_norm": (not isinstance(model.norm_pre, nn.Identity), (False,)),
    }
    for name, (value, allowed) in checks.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def from_transformers(model: nn.Module) -> HfViTForImageClassification:
    """Our model with the weights of transformers' `ViTForImageClassification`, `DeiTForImageClassification` or
    `DeiTForImageClassificationWithTeacher`, in eval mode.

    The distillation token that `DeiTForImageClassification` carries but does not read becomes a register token.

    Raises:
        ValueError: if the model is of another class.
    """
    check_class(
        model, "ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"
    )
    has_two_heads = hasattr(model, "distillation_classifier")
    has_unread_token = not has_two_heads and model.config.model_type == "deit"
    config = HfViTConfig(
        **{name: getattr(model.config, name) for name in _SHARED_FIELDS},
        use_distillation_token=has_two_heads,
        num_register_tokens=int(has_unread_token),
    )
    state_dict = dict(model.state_dict())
    if has_unread_token:
        state_dict["vit.embeddings.register_tokens"] = state_dict.pop("deit.embeddings.distillation_token")
    return _with_weights(config, with_fused_projections(renamed(state_dict, _TRANSFORMERS_NAMES)))


def check_class(model: nn.Module, *supported: str):
    """Raises a `ValueError` unless the model's class bears one of these names."""
    if type(model).__name__ not in supported:
        raise ValueError(f"model must be a {' or '.join(supported)}, got {type(model).__name__}")


def renamed(state_dict: dict[str, torch.Tensor], renamings: tuple) -> dict[str, torch.Tensor]:
    """The weights, each (pattern, replacement) applied in turn to their names."""
    weights = {}
    for name, value in state_dict.items():
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    return weights


def with_fused_projections(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values (of cross-attention: keys and values) as one projection each."""
    weights = dict(weights)
    for name in [name for name in weights if ".q_proj." in name]:
        is_cross = ".cross_attention." in name
        fused = ("k_proj", "v_proj") if is_cross else ("q_proj", "k_proj", "v_proj")
        parts = [weights.pop(name.replace("q_proj", part)) for part in fused]
        weights[name.replace("q_proj", "kv_proj" if is_cross else "qkv_proj")] = torch.cat(parts)
    return weights


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]):
    """Every weight into the model.

    Raises:
        ValueError: if names or shapes differ; the message lists them.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"model has parts that ours lacks, or lacks parts: {error}") from error


def _with_weights(config: HfViTConfig, weights: dict[str, torch.Tensor]) -> HfViTForImageClassification:
    projection = "vit.embeddings.patch_embedding.projection.weight"
    weights[projection] = weights[projection].flatten(1)  # (D, channels * height * width)
    positions = weights.pop("vit.embeddings.position_embedding", None)  # (1, [prefix +] patches, D)
    if positions is not None:
        rows, columns = config.grid_size
        prefix, grid = positions[0].split([positions.shape[1] - rows * columns, rows * columns])
        weights["vit.embeddings.position_embedding.grid"] = grid.unflatten(0, (rows, columns))
        if len(prefix):
            weights["vit.embeddings.position_embedding.prefix"] = prefix
    model = HfViTForImageClassification(config).eval()
    load_weights(model, weights)
    return model


__all__ = ["from_timm", "from_transformers"]
