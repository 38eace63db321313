"""Which closed forms a configuration has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_vit.cost.detr import backbone_of, detr_parts
from hf_vit.cost.memory import Memory, Setup, vit_memory
from hf_vit.cost.parts import Part
from hf_vit.cost.stacks import detr_memory, transformer_memory
from hf_vit.cost.transformer import cache_bytes, generated_token_macs, transformer_parts
from hf_vit.cost.vit import tokens_in_layers, vit_parts


@dataclass(frozen=True)
class Family:
    """Closed forms of a family of models, each of a configuration and a `Setup`.

    Args:
        parts: of a model.
        memory: that it needs.
        tokens: that a sample has in its layers.
        generation: `cache_bytes` and `generated_token_macs` of a model that generates.
    """

    parts: Callable[[Any, Setup], list[Part]]
    memory: Callable[[Any, Setup], Memory]
    tokens: Callable[[Any, Setup], int]
    generation: Callable[[Any, Setup], dict[str, int]] = lambda config, setup: {}


def _generation(config: Any, setup: Setup) -> dict[str, int]:
    source, target = setup.source_tokens, setup.target_tokens
    return {
        "cache_bytes": cache_bytes(config, setup.batch_size, source, target, setup.parameter_bytes),
        "generated_token_macs": generated_token_macs(config, source, target),
    }


FAMILIES = {
    "hf_vit": Family(
        parts=lambda config, setup: vit_parts(config, setup.batch_size, setup.training),
        memory=vit_memory,
        tokens=lambda config, setup: tokens_in_layers(config, setup.training),
    ),
    "hf_transformer": Family(
        parts=lambda config, setup: transformer_parts(
            config, setup.batch_size, setup.source_tokens, setup.target_tokens
        ),
        memory=transformer_memory,
        tokens=lambda config, setup: setup.source_tokens + setup.target_tokens,
        generation=_generation,
    ),
    "hf_detr": Family(
        parts=lambda config, setup: detr_parts(config, setup.batch_size, setup.training),
        memory=detr_memory,
        tokens=lambda config, setup: tokens_in_layers(backbone_of(config)),
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The closed forms of a model.

    Raises:
        ValueError: if there are none of it.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {config.model_type!r}")
    return FAMILIES[config.model_type]
