"""Weights of timm's and transformers' Vision Transformers, brought into ours."""

import re

import torch
from torch import nn

from .models.configuration_hf_vit import HfViTConfig
from .models.modeling_hf_vit import HfViTForImageClassification

_TIMM_POOLINGS = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}

# Applied in turn to each name of the peer's state dict.
_TIMM_NAMES = (
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embedding.projection."),
    (r"^cls_token$", "vit.embeddings.class_token"),
    (r"^dist_token$", "vit.embeddings.distillation_token"),
    (r"^reg_token$", "vit.embeddings.register_tokens"),
    (r"^pos_embed$", "vit.embeddings.position_embedding"),
    (r"^blocks\.", "vit.layers."),
    (r"\.attn\.qkv\.", ".attention.qkv_proj."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.attn\.([qk])_norm\.", r".attention.\1_norm."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.scale"),
    (r"^(fc_)?norm\.", "vit.norm."),
    (r"^attn_pool\.latent$", "vit.pooler.poolings.attention_pooling.query"),
    (r"^attn_pool\.(q|kv)\.", r"vit.pooler.poolings.attention_pooling.\1_proj."),
    (r"^attn_pool\.proj\.", "vit.pooler.poolings.attention_pooling.out_proj."),
    (r"^attn_pool\.", "vit.pooler.poolings.attention_pooling."),
    (r"^head\.", "classifier."),
    (r"^head_dist\.", "distillation_classifier."),
)
_TRANSFORMERS_NAMES = (
    (r"^(vit|deit)\.", "vit."),
    (r"\.cls_token$", ".class_token"),
    (r"\.patch_embeddings\.", ".patch_embedding."),
    (r"\.position_embeddings$", ".position_embedding"),
    (r"\.attention\.o_proj\.", ".attention.out_proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layernorm\.", ".norm."),
    (r"^cls_classifier\.", "classifier."),
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
)


def from_timm(model: nn.Module) -> HfViTForImageClassification:
    """Our model with the weights of a `timm.models.VisionTransformer` (class, average, max or attention pooling,
    registers, layer scale, query and key norm, DeiT's distillation token), in eval mode.

    Raises:
        ValueError: if the model has a part ours lacks.
    """
    if model.global_pool not in _TIMM_POOLINGS:
        raise ValueError(f"global_pool must be one of {', '.join(_TIMM_POOLINGS)}, got {model.global_pool!r}")
    block = model.blocks[0]
    norms = {"before": isinstance(model.norm, nn.LayerNorm), "after": isinstance(model.fc_norm, nn.LayerNorm)}
    config = HfViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        layer_scale_init_value=float(block.ls1.gamma[0]) if hasattr(block.ls1, "gamma") else None,
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
        pooling_norm=next((place for place, present in norms.items() if present), None),
        num_labels=model.num_classes,
    )
    return _with_weights(config, model.state_dict(), _TIMM_NAMES)


def from_transformers(model: nn.Module) -> HfViTForImageClassification:
    """Our model with the weights of transformers' `ViTForImageClassification`, `DeiTForImageClassification` or
    `DeiTForImageClassificationWithTeacher`, in eval mode.

    The distillation token that `DeiTForImageClassification` carries but does not read becomes a register token.

    Raises:
        ValueError: if the model is of another class.
    """
    supported = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
    if type(model).__name__ not in supported:
        raise ValueError(f"model must be one of {', '.join(supported)}, got {type(model).__name__}")
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
    for name in [name for name in state_dict if ".attention.q_proj." in name]:
        parts = [state_dict.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        state_dict[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
    return _with_weights(config, state_dict, _TRANSFORMERS_NAMES)


def _with_weights(
    config: HfViTConfig, state_dict: dict[str, torch.Tensor], renamings: tuple[tuple[str, str], ...]
) -> HfViTForImageClassification:
    weights = {}
    for name, value in state_dict.items():
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    projection = "vit.embeddings.patch_embedding.projection.weight"
    weights[projection] = weights[projection].flatten(1)  # (D, C, h, w) -> (D, C * h * w)
    positions = weights.pop("vit.embeddings.position_embedding", None)  # (1, [prefix +] patches, D)
    if positions is not None:
        rows, columns = config.grid_size
        prefix, grid = positions[0].split([positions.shape[1] - rows * columns, rows * columns])
        weights["vit.embeddings.position_embedding.grid"] = grid.unflatten(0, (rows, columns))
        if len(prefix):
            weights["vit.embeddings.position_embedding.prefix"] = prefix
    model = HfViTForImageClassification(config).eval()
    model.load_state_dict(weights)
    return model


__all__ = ["from_timm", "from_transformers"]
