"""Training mode of a model of which some parts are frozen."""

from torch import nn


def train_mode(model: nn.Module) -> None:
    """Training mode, except for parts whose parameters are all frozen: their dropout and batch statistics rest."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
