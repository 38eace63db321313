"""Depth of each parameter in its model, for learning rates that fall from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

# Models of transformers that do not say so themselves: the names, in the base model or each of its stacks, of the
# stem and of the list of layers. Of several lists the one that the installed version has.
_IMAGE_MODELS = {
    "vit": (("embeddings",), ("layers", "encoder.layer")),
    "deit": (("embeddings",), ("layers", "encoder.layer")),
    "beit": (("embeddings",), ("layers", "encoder.layer")),
    "dinov2": (("embeddings",), ("encoder.layer", "layers")),
}
_TEXT_MODELS = {
    "marian": (("embed_tokens", "embed_positions"), ("layers",)),
    "bart": (("embed_tokens", "embed_positions", "layernorm_embedding"), ("layers",)),
    "mbart": (("embed_tokens", "embed_positions", "layernorm_embedding"), ("layers",)),
    "t5": (("embed_tokens",), ("block",)),
}


def parameter_depths(model: nn.Module) -> dict[int, int]:
    """Depth of each parameter by its id: 0 in the stem, 1 in the first layer, highest in what follows the last.

    A model says by `layer_groups` which modules those are, models of timm by their `group_matcher`, and of
    transformers' own some are known here.

    Raises:
        ValueError: nothing says so for this model.
    """
    timm_model: Any = getattr(model, "timm_model", model)
    if hasattr(timm_model, "group_matcher"):
        return _timm_depths(model, timm_model)
    groups = _groups(model)
    depths: dict[int, int] = {}
    for depth, modules in enumerate(groups):
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            depths.setdefault(id(parameter), depth)  # what is tied lies where it is read first
    for parameter in model.parameters():
        depths.setdefault(id(parameter), len(groups))
    return depths


def _groups(model: Any) -> list[list[nn.Module]]:
    for owner in (model, getattr(model, "base_model", model)):
        if hasattr(owner, "layer_groups"):
            return owner.layer_groups()
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    try:
        if model_type in _IMAGE_MODELS:
            stem, layers = _stack(model.base_model, *_IMAGE_MODELS[model_type])
            return [stem, *layers]
        if model_type in _TEXT_MODELS:
            (stem, encoder), (decoder_stem, decoder) = (
                _stack(stack, *_TEXT_MODELS[model_type])
                for stack in (model.base_model.encoder, model.base_model.decoder)
            )
            known = {id(module) for group in (stem, *encoder) for module in group}
            # The norm above the encoder's layers is read with the last of them.
            encoder[-1] += [child for child in model.base_model.encoder.children() if id(child) not in known]
            return [[*stem, *decoder_stem], *encoder, *decoder]
    except AttributeError as error:
        raise ValueError(f"--layer_decay: this version's {model_type} is not known here: {error}") from error
    raise ValueError(
        f"--layer_decay and --head_learning_rate need a model that says which layer a parameter belongs to, and a "
        f"{model_type} model does not; known are {', '.join(sorted({**_IMAGE_MODELS, **_TEXT_MODELS}))}, and what "
        "--convert makes one of this package"
    )


def _stack(
    body: nn.Module, stem: Sequence[str], layers: Sequence[str]
) -> tuple[list[nn.Module], list[list[nn.Module]]]:
    """The stem's modules and those of each layer."""
    for name in layers:
        try:
            found: Any = body.get_submodule(name)
        except AttributeError:
            continue
        return [body.get_submodule(part) for part in stem], [[layer] for layer in found]
    raise AttributeError(f"{type(body).__name__} has no {' or '.join(layers)}")


def _timm_depths(model: nn.Module, timm_model: Any) -> dict[int, int]:
    from timm.models import group_parameters

    depth_of = group_parameters(timm_model, timm_model.group_matcher(coarse=False), reverse=True)
    depths = {id(parameter): depth_of[name] for name, parameter in timm_model.named_parameters()}
    deepest = max(depths.values())
    return {id(parameter): depths.get(id(parameter), deepest) for parameter in model.parameters()}
