"""Forecasts of what a model costs, what fits into a memory, and what would save how much."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from hf_vit.cost.families import family_of
from hf_vit.cost.memory import Memory, Setup
from hf_vit.cost.parts import Part
from hf_vit.cost.vit import num_patches
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.token_schedule import token_reduction

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MEMORY = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")
_MOST_IMAGES = 1 << 20


def memory_bytes(text: str) -> int:
    """Bytes of an amount of memory with its unit, for instance "24GiB".

    Raises:
        ValueError: if it is no number above 0 with a unit.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"memory must be a number above 0 and a unit of {', '.join(_UNITS)}, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Remedy:
    """A change that makes a model need less memory.

    Args:
        name: of the change.
        price: what it takes or changes.
        peak: bytes of the changed model.
        saved: bytes less than without it; below 0 if it needs more.
        largest_batch: images that fit with it, or None without a limit.
    """

    name: str
    price: str
    peak: int
    saved: int
    largest_batch: int | None


@dataclass(frozen=True)
class Forecast:
    """Cost of a model.

    Args:
        setup: how it is run.
        tokens: in its layers.
        parts: its parts, of the whole batch.
        memory: what it needs.
        limit: bytes there are, or None.
        largest_batch: images that fit into the limit; 0 if not one does.
        remedies: what would make it need less.
        cache_bytes: of an encoder-decoder, keys and values of `target_tokens` and `source_tokens`; None of others.
        generated_token_macs: of an encoder-decoder, multiply-accumulates of the last of `target_tokens` of one text.
    """

    setup: Setup
    tokens: int
    parts: list[Part]
    memory: Memory
    limit: int | None
    largest_batch: int | None
    remedies: list[Remedy]
    cache_bytes: int | None = None
    generated_token_macs: int | None = None

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass of the batch."""
        return sum(part.macs for part in self.parts)

    @property
    def step_macs(self) -> int:
        """Multiply-accumulates of the whole step: in training with the backward pass and what is computed again."""
        if not self.setup.training:
            return self.macs
        again = sum(part.recomputed_macs for part in self.parts) if self.setup.gradient_checkpointing else 0
        return self.macs + sum(part.backward_macs for part in self.parts) + again

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the limit, or None without one."""
        return None if self.limit is None else self.memory.peak <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it: memory in bytes, FLOPs two a multiply-accumulate."""
        return {
            "setup": asdict(self.setup),
            "tokens": self.tokens,
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": 2 * self.macs,
            "step_flops": 2 * self.step_macs,
            "parts": [{**asdict(part), "flops": part.flops} for part in self.parts],
            "memory": {**asdict(self.memory), "peak": self.memory.peak},
            "cache_bytes": self.cache_bytes,
            "generated_token_macs": self.generated_token_macs,
            "limit": self.limit,
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "remedies": [asdict(remedy) for remedy in self.remedies],
        }


def forecast(config: PreTrainedConfig, setup: Setup, limit: int | None = None) -> Forecast:
    """Return the cost of an image classifier, a translator or a detector.

    Args:
        config: the configuration; images are of its `image_size`.
        setup: how it is run.
        limit: bytes of memory there are.

    Raises:
        ValueError: if it is none of the three, or a detector on another backbone.
    """
    family = family_of(config)
    return Forecast(
        setup=setup,
        tokens=family.tokens(config, setup),
        parts=family.parts(config, setup),
        memory=family.memory(config, setup),
        limit=limit,
        largest_batch=largest_batch(config, setup, limit),
        remedies=_remedies(config, setup, limit),
        **family.generation(config, setup),
    )


def largest_batch(config: PreTrainedConfig, setup: Setup, limit: int | None) -> int | None:
    """Return the most images that fit into so many bytes, 0 if not one does, None without a limit. What a model needs
    grows with the batch, so that halving finds it."""
    if limit is None:
        return None
    memory, fits, too_many = family_of(config).memory, 0, _MOST_IMAGES
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if memory(config, replace(setup, batch_size=middle)).peak <= limit:
            fits = middle
        else:
            too_many = middle
    return fits


def _remedies(config: PreTrainedConfig, setup: Setup, limit: int | None) -> list[Remedy]:
    memory = family_of(config).memory
    before = memory(config, setup).peak
    found = []
    for name, price, changed, way in _changes(config, setup):
        peak = memory(changed, way).peak
        found.append(Remedy(name, price, peak, before - peak, largest_batch(changed, way, limit)))
    return found


def _changes(config: PreTrainedConfig, setup: Setup) -> list[tuple[str, str, PreTrainedConfig, Setup]]:
    """Names and prices of the changes that are possible, and the model and its setup after each."""
    changes: list[tuple[str, str, PreTrainedConfig, Setup]] = []
    if setup.batch_size > 1:
        half = setup.batch_size // 2
        price = "accumulate gradients for the same global batch" if setup.training else "more batches"
        changes.append((f"batch size {half}", price, config, replace(setup, batch_size=half)))
    if isinstance(config, HfViTConfig):
        changes += [(name, price, changed, setup) for name, price, changed in _fewer_tokens(config)]
    if setup.attn_implementation == "eager" and not getattr(config, "talking_heads", False):
        price = "attention weights that are asked for are computed by eager all the same"
        changes.append(("SDPA", price, config, replace(setup, attn_implementation="sdpa")))
    if setup.training and not setup.gradient_checkpointing:
        parts = family_of(config).parts(config, setup)
        step = sum(part.macs + part.backward_macs for part in parts)
        price = f"{100 * sum(part.recomputed_macs for part in parts) / step:.0f} % more FLOPs a step"
        changes.append(("gradient checkpointing", price, config, replace(setup, gradient_checkpointing=True)))
    if setup.compute_bytes == 4 and setup.training:
        price = "matmuls with 8 bits of precision; weights stay in fp32"
        changes.append(("mixed precision bf16", price, config, replace(setup, mixed_precision="bf16")))
    if setup.compute_bytes == 4 and not setup.training:
        price = "weights and matmuls with 8 bits of precision"
        changes.append(("bf16", price, config, replace(setup, dtype="bfloat16")))
    return changes


def _fewer_tokens(config: HfViTConfig) -> list[tuple[str, str, HfViTConfig]]:
    changes = []
    larger = tuple(2 * side for side in config.patch_shape)
    divides = all(side % patch == 0 for side, patch in zip(config.image_shape, larger))
    if divides and not token_reduction(config):  # whose schedule is for as many patches as there are
        coarse = _changed(config, patch_size=larger[0] if larger[0] == larger[1] else list(larger))
        price = "a quarter of the tokens: coarser, trained anew"
        changes.append((f"patch size {larger[0]}x{larger[1]}", price, coarse))
    merged = num_patches(config) // (2 * config.num_hidden_layers)
    if merged and not token_reduction(config):
        price = "accuracy, which is to be measured; half of the patches are left after the last layer"
        changes.append((f"token_merging_r {merged}", price, _changed(config, token_merging_r=merged)))
    return changes


def _changed(config: HfViTConfig, **fields: Any) -> HfViTConfig:
    return HfViTConfig.from_dict({**config.to_dict(), **fields})
