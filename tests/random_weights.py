"""Models whose every weight says something."""

import torch
from torch import nn


def randomise(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """The module in eval mode with every trained parameter random, so that none can be missing unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module.eval()
