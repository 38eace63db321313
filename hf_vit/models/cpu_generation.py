"""The one place that leans on how transformers' `generate` runs a loop of another's: the hook `custom_generate`.

Nothing else of a private name is read: where the hook is missing or works otherwise, transformers' own loops run, with
one warning and the same texts.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from transformers.generation import GenerationMixin

from .tested_versions import say_once, tested_with

_PREPARED = ("logits_processor", "stopping_criteria", "generation_config")
_ROOT = str(Path(transformers.__file__).parent)


class LoopNotRun(Exception):
    """The loop has not begun, nothing was generated, and no object of the user's has been called."""


def generate_with_loop(loop: Callable, plainly: Callable, generate: Callable, arguments: dict) -> Any:
    """Return what `generate` of transformers does, with its loop replaced, or by its own where that is not possible.

    Args:
        loop: called as `loop(input_ids, **prepared)` with what `generate` has prepared: `logits_processor`,
            `stopping_criteria`, `generation_config` and the model's arguments. May raise [`LoopNotRun`] before it
            begins.
        plainly: gives the result without the hook.
        generate: the method of transformers.
        arguments: by name, what it is called with.
    """
    try:
        return _hooked(loop, generate, arguments)
    except LoopNotRun as error:
        reason = str(error)
    result = plainly()  # an error of the user's shows itself here, and is no reason to blame the hook
    say_slow(reason)
    return result


def say_slow(reason: str) -> None:
    """Log once why transformers' own loops run."""
    say_once(f"fast decoding is not possible, {reason}; transformers' own loop decodes (hf_vit was {tested_with()})")


def _hooked(loop: Callable, generate: Callable, arguments: dict) -> Any:
    has_begun = False

    def run(model: Any, input_ids: torch.Tensor, **prepared: Any) -> Any:
        nonlocal has_begun
        if missing := [name for name in _PREPARED if prepared.get(name) is None]:
            raise LoopNotRun(f"for custom_generate is given no {' and no '.join(missing)}")
        has_begun = True
        return loop(input_ids, **prepared)

    if "custom_generate" not in inspect.signature(GenerationMixin.generate).parameters:
        raise LoopNotRun("for generate takes no custom_generate")
    try:
        result = generate(custom_generate=run, **arguments)
    except (AttributeError, TypeError) as error:
        if has_begun or not _raised_by_transformers(error.__traceback__):
            raise
        raise LoopNotRun(f"for custom_generate fails: {type(error).__name__}: {error}") from error
    if not has_begun:
        raise LoopNotRun("for custom_generate is not called")
    return result


def _raised_by_transformers(traceback: TracebackType | None) -> bool:
    """Whether an error is of a line in transformers itself, and not of what it has called."""
    frames: Any = traceback
    while frames.tb_next is not None:
        frames = frames.tb_next
    return frames.tb_frame.f_code.co_filename.startswith(_ROOT)


__all__ = ["LoopNotRun", "generate_with_loop", "say_slow"]
