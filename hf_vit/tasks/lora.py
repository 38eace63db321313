"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: a frozen checkpoint, and what is trained beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vit.config import argument, check_range, closest
from hf_vit.extras import extra

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FOLDER = "adapter"  # in the folder of the whole model


@dataclass
class LoraArguments:
    _argument_group_name: ClassVar[str] = "Low-rank adapters (LoRA)"

    lora_r: int | None = argument(
        None, help="Freeze the checkpoint; train adapters of this rank beside its linear layers, and the classifier."
    )
    lora_alpha: int = argument(16, help="lora_alpha / lora_r multiplies what the adapters add.")
    lora_dropout: float = argument(0.0, help="Dropout of what the adapters see.")
    lora_target_modules: list[str] | None = argument(
        None, help="Last parts of the names of the layers that get adapters, such as qkv_proj; all linear layers."
    )

    def __post_init__(self) -> None:
        check_range("lora_r", self.lora_r, 1)
        check_range("lora_alpha", self.lora_alpha, 1)
        check_range("lora_dropout", self.lora_dropout, 0, 1)


def add_adapters(
    model: PreTrainedModel, arguments: LoraArguments, head: Sequence[nn.Parameter], name_or_path: str
) -> PeftModel:
    """Freeze a model, put adapters into it and leave its head trainable; the model itself is changed.

    Args:
        head: the parameters of the head.
        name_or_path: the checkpoint; of its path the last part is kept with the adapters.

    Raises:
        ValueError: there is no such layer as `--lora_target_modules` names, or none at all.
    """
    with extra("lora"):
        from peft import LoraConfig, get_peft_model

        from hf_vit.sources import own_name  # which loads datasets
    own = {id(parameter) for parameter in head}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    of_body = [name for name in linear if id(model.get_submodule(name).weight) not in own]
    known = sorted({name.rpartition(".")[2] for name in of_body})
    if not known:
        raise ValueError(f"--lora_r: {type(model).__name__} has no linear layers beside its classifier's")
    targets = arguments.lora_target_modules or known
    for target in targets:
        if target not in known:
            raise ValueError(f"--lora_target_modules: no layer is called {target!r}; {closest(target, known)}")
    base = own_name(name_or_path) if Path(name_or_path).exists() else name_or_path
    options: Any = {
        "r": arguments.lora_r,
        "lora_alpha": arguments.lora_alpha,
        "lora_dropout": arguments.lora_dropout,
        "target_modules": list(targets),
        "modules_to_save": _modules_of(model, own),
    }
    tuned: Any = get_peft_model(model, LoraConfig(**options))
    tuned.peft_config["default"].base_model_name_or_path = base  # not the path that the model was loaded from
    return tuned


def _modules_of(model: nn.Module, parameters: set[int]) -> list[str]:
    """Names of the largest modules that hold nothing but these parameters."""
    names: list[str] = []
    for name, module in model.named_modules():
        found = {id(parameter) for parameter in module.parameters()}
        if found and found <= parameters and not any(name.startswith(f"{above}.") for above in names):
            names.append(name)
    return names


def merged(tuned: PeftModel, state_dict: Mapping[str, torch.Tensor], folder: Path) -> PreTrainedModel:
    """A copy of the whole model with the adapters merged into its weights; the adapters alone are written to
    `folder/adapter`, in peft's format.

    Args:
        state_dict: of the model with adapters, such as averages of its weights.
    """
    own: Any = copy.deepcopy(tuned)
    own.get_base_model().load_state_dict(state_dict)
    own.save_pretrained(folder / ADAPTER_FOLDER, save_embedding_layers=False)
    (folder / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)  # a card without content; the model has one
    return own.merge_and_unload()
