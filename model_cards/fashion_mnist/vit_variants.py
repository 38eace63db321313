"""The sizes of published Vision Transformers, by name."""

import re
from typing import Any

# hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: table 1 of ViT (2010.11929) and of DeiT
# (2012.12877).
_VARIANT_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}
_VARIANTS: dict[str, dict[str, tuple[int, ...]]] = {
    "vit": {"tiny": (16, 32), "small": (8, 16, 32), "base": (8, 16, 32), "large": (14, 16, 32), "huge": (14, 16)},
    "deit": {"tiny": (16,), "small": (16,), "base": (16,)},
}
_VARIANT_PATTERN = re.compile(r"(vit|deit)_([a-z]+)(_distilled)?_patch(\d+)_(\d+)")
# hidden_size, num_hidden_layers, num_attention_heads, initial scale of the branches, image size of the published
# weights: tables 1 and 5 of CaiT (2103.17239).
_CAIT_SIZES = {
    "xxs24": (192, 24, 4, 1e-5, 224),
    "xxs36": (192, 36, 4, 1e-5, 224),
    "xs24": (288, 24, 6, 1e-5, 384),
    "s24": (384, 24, 8, 1e-5, 224),
    "s36": (384, 36, 8, 1e-6, 384),
    "m36": (768, 36, 16, 1e-6, 384),
    "m48": (768, 48, 16, 1e-6, 448),
}
# hidden_size, num_hidden_layers, num_attention_heads, residual scale: table 2 of LV-ViT (2104.10858) and its tiny
# model.
_LVVIT_SIZES = {"tiny": (240, 12, 4, 1.0), "small": (384, 16, 6, 0.5), "medium": (512, 20, 8, 0.5)}
_LVVIT_PATTERN = re.compile(r"lvvit_([a-z]+)(?:_(\d+))?")
_CAIT_PATTERN = re.compile(r"cait_([a-z]+\d+)_(\d+)")


def variant_names() -> list[str]:
    """The names `HfViTConfig.from_variant` knows, at one image size each; any other may stand in the last position."""
    names = []
    for family, sizes in _VARIANTS.items():
        for size, patch_sizes in sizes.items():
            for patch_size in patch_sizes:
                names.append(f"{family}_{size}_patch{patch_size}_224")
                if family == "deit":
                    names.append(f"{family}_{size}_distilled_patch{patch_size}_224")
    names += [f"cait_{size}_{sizes[-1]}" for size, sizes in _CAIT_SIZES.items()]
    return [*names, *(f"lvvit_{size}_224" for size in _LVVIT_SIZES)]


def variant_fields(name: str) -> dict[str, object]:
    """Return the fields of the configuration of a variant.

    Raises:
        ValueError: if there is no such variant, the message lists those that exist.
    """
    match = _CAIT_PATTERN.fullmatch(name)
    if match and match[1] in _CAIT_SIZES:
        return _cait_fields(*_CAIT_SIZES[match[1]][:4], image_size=int(match[2]))
    match = _LVVIT_PATTERN.fullmatch(name)
    if match and match[1] in _LVVIT_SIZES:
        return _lvvit_fields(*_LVVIT_SIZES[match[1]], image_size=int(match[2] or 224))
    match = _VARIANT_PATTERN.fullmatch(name)
    fields: Any = match.groups() if match else (None,) * 5
    family, size, distilled, patch_size, image_size = fields
    known = int(patch_size) in _VARIANTS[family].get(size, ()) if match else False
    if not known or (distilled and family != "deit"):
        raise ValueError(f"variant must be one of {', '.join(variant_names())} (or another size), got {name!r}")
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = _VARIANT_SIZES[size]
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size,
        "patch_size": int(patch_size),
        "image_size": int(image_size),
        "use_distillation_token": bool(distilled),
    }


def _cait_fields(
    hidden_size: int, num_hidden_layers: int, num_attention_heads: int, initial_scale: float, image_size: int
) -> dict[str, object]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": 4 * hidden_size,
        "patch_size": 16,
        "image_size": image_size,
        "num_class_layers": 2,
        "talking_heads": True,
        "layer_scale_init_value": initial_scale,
    }


def _lvvit_fields(
    hidden_size: int, num_hidden_layers: int, num_attention_heads: int, residual_scale: float, image_size: int
) -> dict[str, object]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": 3 * hidden_size,
        "patch_size": 16,
        "image_size": image_size,
        "qkv_bias": False,
        "patch_embedding": "lvvit",
        "residual_scale": residual_scale,
        "use_token_labeling_head": True,
    }


__all__ = ["variant_fields", "variant_names"]
