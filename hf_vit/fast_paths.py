"""Which fast paths a model takes on this machine, with these versions, and why not: seen by running it."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

import hf_vit
from hf_vit.models import attention, cpu_linear, fast_generation
from hf_vit.models.cached_decoder import why_not_cached
from hf_vit.models.cpu_linear import PackedParameter
from hf_vit.models.cpu_operators import Guarded
from hf_vit.models.cpu_processor import processor_flags, processor_vendor
from hf_vit.models.fast_generation import FastGenerationMixin
from hf_vit.unasked import unasked

# Decisions that a model makes as it runs: what they are about, and where they are made.
_DECISIONS = {
    "linear layers by oneDNN": (cpu_linear, "why_not_onednn_linear"),
    "attention as batched matmuls": (attention, "why_not_matmul_attention"),
}
_TRAINING_DECISIONS = {**_DECISIONS, "fused attention in fp32": (attention, "why_not_fp32_attention")}
_NEVER_ASKED = "with a mask, a bias, causality or dropout, or an attn_implementation other than 'sdpa'"
_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class FastPath(NamedTuple):
    """How often a model could take a path, how often it did, and the reasons why not."""

    work: str
    path: str
    taken: int
    possible: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.work}: {self.path}: {self.taken} of {self.possible}{reasons}"


def describe_machine() -> str:
    """The processor and the versions that decide, in one line."""
    flags = processor_flags()
    has = [name for name in _INSTRUCTIONS if name in flags]
    return (
        f"{processor_vendor() or 'unknown maker'}, {torch.backends.cpu.get_cpu_capability()} "
        f"({', '.join(has) or 'no instruction sets known'}), "
        f"torch {torch.__version__}, transformers {transformers.__version__}, HF_VIT_CPU_PATHS={Guarded.mode}"
    )


@unasked()
def fast_paths(folder: str | os.PathLike) -> list[FastPath]:
    """The paths of inference, training and generation in fp32 and bf16. Runs no code of the folder.

    Raises:
        ValueError: the model in it is not one of this package's.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [None])[0]
    model_class: Any = getattr(hf_vit, name or "", None)
    if name not in hf_vit.__all__ or not issubclass(model_class, PreTrainedModel):
        raise ValueError(f"folder: the model in {os.fspath(folder)!r} must be one of hf_vit, found {name}")
    found: list[FastPath] = []
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = model_class.from_pretrained(folder, dtype=dtype)
        kind = str(dtype).removeprefix("torch.")
        found += _run(f"{kind} inference", model.eval(), _DECISIONS, torch.no_grad())
        found += _run(f"{kind} training", model.train(), _TRAINING_DECISIONS, torch.enable_grad())
        if hasattr(model, "pack_weights"):
            found.append(_packing(f"{kind} inference", model.eval()))
        if issubclass(model_class, FastGenerationMixin):
            found += [_generation(f"{kind} generation", model.eval(), num_beams) for num_beams in (1, 4)]
    return found


def _run(
    work: str, model: PreTrainedModel, decisions: dict, grad_mode: AbstractContextManager[Any]
) -> Iterator[FastPath]:
    with _recorded(decisions) as reasons, grad_mode:
        model(**_inputs(model))
    for path, given in reasons.items():
        why_not = tuple(reason for reason in given if reason) if given else (_NEVER_ASKED,)
        yield FastPath(work, path, given[None], given.total(), why_not)


@contextmanager
def _recorded(decisions: dict) -> Iterator[dict[str, Counter]]:
    """How often each reason was given for each decision; None where the path was taken."""
    reasons: dict[str, Counter] = {path: Counter() for path in decisions}
    patches = []
    for path, (module, name) in decisions.items():
        decide = getattr(module, name)
        patches.append(patch.object(module, name, _recording(decide, reasons[path])))
    for each in patches:
        each.start()
    try:
        yield reasons
    finally:
        for each in patches:
            each.stop()


def _recording(decide: Callable, reasons: Counter) -> Callable:
    def recorded(*args: Any) -> Any:
        reason = decide(*args)
        reasons[reason] += 1
        return reason

    return recorded


def _inputs(model: PreTrainedModel) -> dict:
    config: Any = model.config
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.zeros(2, config.num_channels, *config.image_shape, dtype=model.dtype)}
    tokens = torch.arange(8)[None] % config.vocab_size  # (1, 8)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})}


def _packing(work: str, model: Any) -> FastPath:
    weights = cpu_linear.weights_to_pack(model)
    reasons = dict.fromkeys(reason for _, reason in weights if reason)
    model.pack_weights()
    count = sum(type(parameter) is PackedParameter for parameter, _ in weights)
    return FastPath(work, "weights packed by pack_weights()", count, len(weights), tuple(reasons))


def _generation(work: str, model: Any, num_beams: int) -> FastPath:
    make: Any = fast_generation.CachedDecoder
    made: list[int] = []

    def counted(*args: Any) -> Any:
        made.append(1)
        return make(*args)

    with patch.object(fast_generation, "CachedDecoder", counted):
        model.generate(_inputs(model)["input_ids"], num_beams=num_beams, do_sample=False, max_new_tokens=2)
    reasons = why_not_cached(model)
    if not made and not reasons:
        reasons = [f"generate of transformers {transformers.__version__} goes another way"]
    path = "greedy search over one cache" if num_beams == 1 else "beam search over one cache"
    return FastPath(work, path, len(made), 1, tuple(reasons))
