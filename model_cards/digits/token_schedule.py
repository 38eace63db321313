"""How many tokens the layers of the Vision Transformer leave, read by the configuration, the models and the forecast
of what they cost."""

import math
from typing import Any

# The ways to go on with fewer tokens, each the field of the configuration that switches it on, and what switches it
# off. One at a time.
TOKEN_REDUCTIONS: dict[str, float] = {"token_merging_r": 0, "token_pruning_keep_rate": 1}


def token_reduction(config: Any) -> str | None:
    """The field in use, or None for a model that keeps all its tokens."""
    used = [name for name, off in TOKEN_REDUCTIONS.items() if any(value != off for value in _values(config, name))]
    if len(used) > 1:
        raise ValueError(f"{' and '.join(used)} must not be given together: one way to have fewer tokens at a time")
    return used[0] if used else None


def _values(config: Any, name: str) -> list[float]:
    value = getattr(config, name)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def by_layer(config: Any, name: str) -> list[float]:
    """The value of a field in each layer: a number of merged patches is that of every layer, a rate that of the layers
    at a quarter, a half and three quarters of the depth, as in the paper; the others keep all.

    Raises:
        ValueError: if a list has not one for each layer.
    """
    value = getattr(config, name)
    if not isinstance(value, (list, tuple)) and name == "token_merging_r":
        return [value] * config.num_hidden_layers
    if not isinstance(value, (list, tuple)):
        quarters = {config.num_hidden_layers * i // 4 for i in (1, 2, 3)}
        return [value if layer in quarters else TOKEN_REDUCTIONS[name] for layer in range(config.num_hidden_layers)]
    if len(value) != config.num_hidden_layers:
        raise ValueError(
            f"{name} must have one value for each of {config.num_hidden_layers} layers, got {len(value)}: {value}"
        )
    return list(value)


def merged_in_layers(config: Any, num_patches: Any) -> list[Any]:
    """Patches that each layer merges into others: those of `token_merging_r`, but never more than half of what there
    is, since each goes into one that stays.

    Args:
        num_patches: before the first layer; in a graph for images of any size, a symbol.
    """
    numbers, merged = by_layer(config, "token_merging_r"), []
    if min(numbers) < 0:
        raise ValueError(f"token_merging_r must be at least 0, got {config.token_merging_r}")
    for number in numbers:
        merged.append(_smaller(int(number), num_patches // 2))
        num_patches = num_patches - merged[-1]
    return merged


def _smaller(number: int, limit: Any) -> Any:
    if isinstance(limit, int):
        return min(number, limit)
    import torch

    return torch.sym_min(number, limit) if number else 0


def kept_in_layers(config: Any, num_patches: int) -> list[int | None]:
    """Patches that each layer keeps by `token_pruning_keep_rate` beside the one that the others are fused into: the
    rate times the patches, rounded up; None where that is all of them, or all but one.

    Args:
        num_patches: before the first layer.
    """
    rates, kept = by_layer(config, "token_pruning_keep_rate"), list[int | None]()
    if not 0 < min(rates) <= max(rates) <= 1:
        raise ValueError(f"token_pruning_keep_rate must be in (0, 1], got {config.token_pruning_keep_rate}")
    for rate in rates:
        number = math.ceil(rate * num_patches)
        kept.append(number if number < num_patches - 1 else None)
        num_patches = num_patches if kept[-1] is None else number + 1
    return kept


def patches_after_layers(config: Any, num_patches: int) -> list[int]:
    """Patches that each layer hands on in inference.

    Args:
        num_patches: before the first layer.
    """
    left = [num_patches] * config.num_hidden_layers
    if token_reduction(config) == "token_merging_r":
        merged = merged_in_layers(config, num_patches)
        left = [num_patches - sum(merged[: i + 1]) for i in range(len(merged))]
    if token_reduction(config) == "token_pruning_keep_rate":
        for layer, kept in enumerate(kept_in_layers(config, num_patches)):
            num_patches = num_patches if kept is None else kept + 1
            left[layer] = num_patches
    return left


def check_token_reduction(config: Any) -> None:
    """Raise a `ValueError` for a reduction of tokens that cannot be, by images of `config.image_size`."""
    num_patches = math.prod(config.grid_size)
    for name in TOKEN_REDUCTIONS:
        by_layer(config, name)
    if token_reduction(config) == "token_merging_r":
        _check_merging(config, num_patches)
    if token_reduction(config) == "token_pruning_keep_rate":
        _check_pruning(config, num_patches)


def _check_pruning(config: Any, num_patches: int) -> None:
    kept_in_layers(config, num_patches)
    given = config.token_pruning_keep_rate
    if not config.use_class_token or config.num_class_layers:
        raise ValueError(
            f"token_pruning_keep_rate {given} needs a class token in the layers: use_class_token must be True and "
            f"num_class_layers 0, got {config.use_class_token} and {config.num_class_layers}"
        )
    if config.talking_heads:  # whose attention is another after the softmax
        raise ValueError(f"talking_heads must not be True with token_pruning_keep_rate {given}")


def _check_merging(config: Any, num_patches: int) -> None:
    numbers, given = by_layer(config, "token_merging_r"), config.token_merging_r
    merged = merged_in_layers(config, num_patches)
    if sum(numbers) >= num_patches:
        raise ValueError(
            f"token_merging_r must leave at least one of {num_patches} patches, got {given}, which merges "
            f"{int(sum(numbers))} in {config.num_hidden_layers} layers"
        )
    if isinstance(given, (list, tuple)) and merged != list(given):
        layer = next(i for i, number in enumerate(merged) if number != given[i])
        raise ValueError(
            f"token_merging_r must be at most half of the patches of a layer, {merged[layer]} in layer {layer}, "
            f"got {given[layer]}"
        )


__all__ = [
    "TOKEN_REDUCTIONS",
    "by_layer",
    "check_token_reduction",
    "kept_in_layers",
    "merged_in_layers",
    "patches_after_layers",
    "token_reduction",
]
