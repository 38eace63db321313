"""The arguments of tasks whose models generate texts. Nothing here takes long to import: the help is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import argument, check_range


@dataclass
class GenerationArguments:
    _argument_group_name: ClassVar[str] = "Loss and generation"

    label_smoothing_factor: float | None = argument(
        None, help="Part of each target that is spread over the vocabulary; none, or the checkpoint's, when not given."
    )
    num_beams: int | None = argument(
        None,
        help="Beams that the saved model generates with, one or the checkpoint's when not given; the result is "
        "measured with one beam, and with these.",
    )
    generation_max_length: int = argument(
        128,
        help="Most tokens that are generated for a text in evaluation, and by the saved model unless it is told or a "
        "checkpoint brought a limit of its own.",
    )
    metric_for_best_model: str = argument(
        "bleu", help="Decides which checkpoint is the best.", choices=("bleu", "chrf", "exact_match")
    )

    def __post_init__(self) -> None:
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0, 0.99)
        check_range("num_beams", self.num_beams, 1)
        check_range("generation_max_length", self.generation_max_length, 1)


@dataclass
class ScoredGenerationArguments:
    _argument_group_name: ClassVar[str] = "Generation"

    num_beams: int | None = argument(
        None, help="Beams that are measured beside greedy decoding; those that the model generates with by default."
    )
    generation_max_length: int | None = argument(
        None, help="Most tokens that are generated for a text; the model's own limit, or 128, when not given."
    )

    def __post_init__(self) -> None:
        check_range("num_beams", self.num_beams, 1)
        check_range("generation_max_length", self.generation_max_length, 1)
