"""Gradual unfreezing (ULMFiT, arXiv 1801.06146): the head learns first, then one more layer at a time."""

from __future__ import annotations

import torch
from torch import nn

from hf_vit.trainer.layers import parameter_depths
from hf_vit.trainer.optim import OptimizationArguments


class GradualUnfreezing:
    """Says by the step alone which parameters rest, so that a resumed run goes on as it was.

    A parameter rests by having no gradient: neither the optimizer's moments nor weight decay touch it then, the norm
    that gradients are clipped to does not count it, and processes that share gradients need not know.

    Args:
        num_steps: after so many all layers are trained; the head is from the start, and the layers below it follow at
            even distances, the stem last.

    Raises:
        ValueError: nothing says which layer a parameter belongs to.
    """

    def __init__(self, model: nn.Module, num_steps: int):
        depths = parameter_depths(model)
        deepest = max(depths.values())
        self._starts = [
            (parameter, round(num_steps * (deepest - depths[id(parameter)]) / deepest))
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def resting(self, step: int) -> list[torch.Tensor]:
        """Parameters that the optimizer step after `step` others leaves alone."""
        return [parameter for parameter, start in self._starts if step < start]

    def drop_gradients(self, step: int) -> None:
        """Take the gradients of resting parameters away."""
        for parameter in self.resting(step):
            parameter.grad = None


def gradual_unfreezing(
    model: nn.Module, arguments: OptimizationArguments, steps_per_epoch: int, sharding: str | None = None
) -> GradualUnfreezing | None:
    """The schedule that the arguments ask for, None where all layers are trained from the start.

    Raises:
        ValueError: processes share the weights out, or nothing says which layer a parameter belongs to.
    """
    num_epochs = arguments.gradual_unfreezing_epochs
    if num_epochs is None:
        return None
    if sharding is not None:
        raise ValueError(f"--gradual_unfreezing_epochs does not go with weights that processes share out ({sharding})")
    return GradualUnfreezing(model, num_epochs * steps_per_epoch)
