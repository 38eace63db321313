"""Which values a configuration of the Vision Transformer may have, and with which others."""

from collections.abc import Sequence
from typing import Any

from transformers.activations import ACT2FN

from .strict_config import GATED_ACTIVATIONS, PROBLEM_TYPES
from .token_schedule import check_token_reduction

POOLINGS = ("cls", "cls_tanh", "mean", "max", "cls_mean", "weighted", "attention", "none")
# Added to the tokens, to the attention scores, or turning queries and keys.
ABSOLUTE = ("learned", "learned_2d", "sincos_1d", "sincos_2d")
RELATIVE = ("relative_bias", "relative_bias_per_layer")
ROTARY = ("rope_2d", "rope_axial", "rope_mixed")
POSITION_EMBEDDINGS = (*ABSOLUTE, *RELATIVE, *ROTARY, "none")
PATCH_EMBEDDINGS = ("conv", "hybrid", "lvvit")
PATCH_FITS = ("exact", "pad", "crop")
DISTILLATION_TYPES = ("soft", "hard")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return a size given as one number or as (height, width) as the latter."""
    pair: Any = (value, value) if isinstance(value, int) else tuple(value)
    return pair


def check_config(config: Any) -> None:
    """Raise a `ValueError` for the first value that is out of range or does not fit the others."""
    _check_sizes(config)
    _check_names(config)
    _check_positions(config)
    _check_layers(config)
    check_token_reduction(config)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "patch_dropout_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")
    for name in ("cls_mean_weight", "distillation_alpha"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}")
    if config.learn_cls_mean_weight and config.cls_mean_weight in (0, 1):
        raise ValueError(f"cls_mean_weight must be in (0, 1) to be learnt, got {config.cls_mean_weight}")
    for name in (
        "distillation_temperature",
        "initializer_range",
        "layer_norm_eps",
        "layer_scale_init_value",
        "residual_scale",
        "rope_theta",
    ):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")

    if config.token_labeling_weight < 0:
        raise ValueError(f"token_labeling_weight must be at least 0, got {config.token_labeling_weight}")
    if config.use_token_labeling_head and config.patch_dropout_prob:
        raise ValueError(
            f"patch_dropout_prob must be 0 with use_token_labeling_head, which classifies every patch, got "
            f"{config.patch_dropout_prob}"
        )


def _check_sizes(config: Any) -> None:
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("num_register_tokens", "num_stem_blocks", "num_class_layers"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}")
    if config.num_stem_blocks and config.patch_embedding != "hybrid":
        raise ValueError(f"num_stem_blocks must be 0 without patch_embedding 'hybrid', got {config.num_stem_blocks}")
    for name in ("head_dim", "qk_head_dim", "v_head_dim"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        if value is not None and config.num_class_layers:
            raise ValueError(f"{name} must be None with num_class_layers {config.num_class_layers}, got {value}")
    has_own_sizes = config.head_dim is not None and "attention" not in config.poolings
    if config.hidden_size % config.num_attention_heads and not has_own_sizes:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads ({config.num_attention_heads}), unless head_dim "
            f"is given and pooling is not 'attention', got {config.hidden_size}"
        )
    for name in ("image_size", "patch_size", "position_grid_size"):
        value = getattr(config, name)
        if value is not None and (len(pair(value)) != 2 or min(pair(value)) < 1):
            raise ValueError(f"{name} must be a positive integer or a pair (height, width) of them, got {value}")
    if config.patch_embedding == "lvvit" and any(patch % 2 for patch in config.patch_shape):
        raise ValueError(f"patch_size must be even for patch_embedding 'lvvit', got {config.patch_size}")
    if config.patch_fit == "crop":
        if any(size < patch for size, patch in zip(config.image_shape, config.patch_shape)):
            raise ValueError(f"image_size must be at least patch_size ({config.patch_size}), got {config.image_size}")
    elif any(size % patch for size, patch in zip(config.image_shape, config.patch_shape)):
        raise ValueError(f"image_size must be a multiple of patch_size ({config.patch_size}), got {config.image_size}")


def _check_names(config: Any) -> None:
    choices = {
        "patch_embedding": PATCH_EMBEDDINGS,
        "patch_fit": PATCH_FITS,
        "distillation_type": DISTILLATION_TYPES,
        "pooling_norm": ("before", "after", "none", None),
        "norm_type": ("layer_norm", "rms_norm"),
        "position_embedding_on_prefix": (True, False, "class", None),
        "problem_type": (*PROBLEM_TYPES, None),
        "hidden_act": (*ACT2FN, *GATED_ACTIVATIONS),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(config, name)!r}")
    if not config.poolings or any(name not in POOLINGS for name in config.poolings):
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, or a list of them, got {config.pooling!r}")
    if len(set(config.poolings)) != len(config.poolings) or ("none" in config.poolings and config.pooling != "none"):
        raise ValueError(f"pooling must not have 'none' or a name twice in a list, got {config.pooling!r}")
    if {"cls", "cls_tanh", "cls_mean"} & set(config.poolings) and not config.use_class_token:
        raise ValueError(f"pooling {config.pooling!r} needs use_class_token=True, got False")


def _check_positions(config: Any) -> None:
    names, given = config.position_embeddings, config.position_embedding
    if not names or any(name not in POSITION_EMBEDDINGS for name in names):
        raise ValueError(
            f"position_embedding must be one of {', '.join(POSITION_EMBEDDINGS)}, or a list of them, got {given!r}"
        )
    if len(set(names)) != len(names) or any(len(set(names) & set(kind)) > 1 for kind in (ABSOLUTE, ROTARY)):
        raise ValueError(
            f"position_embedding must not have a name twice, nor two of {', '.join(ABSOLUTE)} or of "
            f"{', '.join(ROTARY)}, got {given!r}"
        )
    if "none" in names and given != "none":
        raise ValueError(f"position_embedding must not have 'none' in a list, got {given!r}")
    head_size, _ = config.head_dims
    multiples = {
        "sincos_1d": ("hidden_size", config.hidden_size, 2),
        "sincos_2d": ("hidden_size", config.hidden_size, 4),
        **dict.fromkeys(ROTARY, ("head size of queries and keys", head_size, 4)),
    }
    for scheme in names:
        name, size, divisor = multiples.get(scheme, ("", 0, 1))
        if size % divisor:
            raise ValueError(f"{name} must be a multiple of {divisor} for position_embedding={scheme}, got {size}")
    if given == "none" and config.position_embedding_on_prefix:
        raise ValueError("position_embedding_on_prefix must not be True with position_embedding 'none'")
    if config.position_embedding_on_prefix == "class":
        if config.absolute_position not in ("learned", "learned_2d"):
            raise ValueError(f"position_embedding_on_prefix 'class' needs a learnt position_embedding, got {given!r}")
        _refuse_together(config, "position_embedding_on_prefix", "class", registers_first=True)


def _check_layers(config: Any) -> None:
    """Parts that know nothing of each other."""
    if config.num_class_layers:
        if not config.use_class_token:
            raise ValueError("num_class_layers must be 0 without use_class_token")
        given = config.num_class_layers
        _refuse_together(config, "num_class_layers", given, registers_first=True, attention_output_norm=True)
        _refuse_together(config, "num_class_layers", given, position_embedding_on_prefix=True)
        _refuse_together(config, "num_class_layers", given, position_embedding_on_prefix="class")
        if config.qkv_bias:
            _refuse_together(config, "num_class_layers", given, key_bias=False)


def _refuse_together(config: Any, name: str, value: object, **others: object) -> None:
    for other, refused in others.items():
        if getattr(config, other) == refused:
            raise ValueError(f"{other} must not be {refused!r} with {name} {value!r}")


__all__ = ["PATCH_EMBEDDINGS", "POOLINGS", "POSITION_EMBEDDINGS", "check_config", "pair"]
