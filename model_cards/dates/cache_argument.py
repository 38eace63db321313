"""The cache of keys and values under the names that transformers has for it: `past_key_values` up to 5.23, `cache`
from 5.24 on. The models take either; what they hand to transformers bears the name of the version that runs."""

import dataclasses
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .tested_versions import tested_with

NAMES = ("past_key_values", "cache")
_FIELDS = {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
# What this version calls it, in outputs and arguments alike.
CACHE_NAME = "cache" if "cache" in _FIELDS else "past_key_values"


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache under whichever name it came.

    Raises:
        ValueError: if it came under both.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument: give one of them, got both")
    return cache if past_key_values is None else past_key_values


def with_cache_name(arguments: dict) -> dict:
    """Arguments by name, with the cache under the name of this version.

    Raises:
        ValueError: if it came under both names.
    """
    if not arguments.keys() & set(NAMES):
        return arguments
    rest = {name: value for name, value in arguments.items() if name not in NAMES}
    cache = one_cache(*(arguments.get(name) for name in NAMES))
    return rest if cache is None else {**rest, CACHE_NAME: cache}


def check_mask(name: str, mask: torch.Tensor | None, *num_keys: int) -> None:
    """Raise a `ValueError` if a mask is of other keys than there are.

    Args:
        name: what the caller calls the mask.
        mask: shape (batch, keys) or (batch, 1, queries, keys); anything else is left to transformers.
        num_keys: how many keys there may be.
    """
    if isinstance(mask, torch.Tensor) and mask.ndim in (2, 4) and mask.shape[-1] not in num_keys:
        raise ValueError(
            f"{name} must cover {num_keys[0]} tokens, those of the past and those given, got shape "
            f"{tuple(mask.shape)}: the cache was lost or does not belong to it (hf_vit was {tested_with()})"
        )


def check_past(
    prefix: str,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    num_tokens: int,
    past_length: Any,
    num_keys: int,
) -> None:
    """Raise a `ValueError` if mask or positions tell of more past than the cache holds, where looking costs no
    synchronisation: on the CPU, outside a compiled graph.

    Args:
        prefix: begins what the caller calls the two.
        attention_mask: see [`check_mask`].
        position_ids: shape (batch or 1, tokens), or None; those of padding do not count.
        num_tokens: tokens that are given.
        past_length: tokens that the cache holds, a tensor if it is a static one.
        num_keys: keys that the tokens attend to, with the room that a static cache has beyond, and a mask may cover.
    """
    if torch.compiler.is_compiling() or not (isinstance(past_length, int) or past_length.device.type == "cpu"):
        return
    past_length = int(past_length)
    check_mask(f"{prefix}attention_mask", attention_mask, past_length + num_tokens, num_keys)
    if position_ids is None or position_ids.device.type != "cpu":
        return
    slots = torch.arange(past_length, past_length + position_ids.shape[1])
    is_beyond = position_ids > slots
    if attention_mask is not None and attention_mask.ndim == 2:  # padding has any position, as generate's has 1
        is_beyond = is_beyond & attention_mask[:, past_length : past_length + num_tokens].bool()
    if bool(is_beyond.any()):
        largest = int(position_ids.expand_as(is_beyond)[is_beyond].max())
        raise ValueError(
            f"{prefix}position_ids must be at most the number of tokens before each, got up to "
            f"{largest} with {past_length} tokens in the cache: the cache was lost or does not belong "
            f"to them (hf_vit was {tested_with()})"
        )


__all__ = ["CACHE_NAME", "check_mask", "check_past", "one_cache", "with_cache_name"]
