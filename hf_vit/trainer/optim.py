"""Optimizer, parameter groups and schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_vit.config import Options, argument, check_range
from hf_vit.extras import extra
from hf_vit.trainer.layers import parameter_depths

# Those of `transformers.SchedulerType` that follow the steps. Importing them would load peft, where it is installed.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


_OF_TIMM = {"lamb": "Lamb", "lion": "Lion", "muon": "Muon"}


@dataclass
class OptimizationArguments:
    _argument_group_name: ClassVar[str] = "Optimization"
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {
        "num_train_epochs": ("max_train_steps",),
        "warmup_steps": ("warmup_ratio",),
        "warmup_ratio": ("warmup_steps",),
    }

    num_train_epochs: int = argument(10, help="Passes over the training data.")
    max_train_steps: int | None = argument(None, help="Stop after this many optimizer steps, whatever the epochs.")
    per_device_train_batch_size: int = argument(32, help="Images of one process in one training batch.")
    per_device_eval_batch_size: int = argument(64, help="Images of one process in one evaluation batch.")
    gradient_accumulation_steps: int = argument(1, help="Batches of each process in one optimizer step.")
    auto_batch_size: bool = argument(
        False,
        help="Take the largest batch that fits into the memory by the forecast, and accumulate for as many samples in "
        "an optimizer step as were asked for.",
    )
    ignore_memory_forecast: bool = argument(False, help="Train although a step will not fit by the forecast.")
    optim: str = argument(
        "adamw",
        help="AdamW, gradient descent with Nesterov's momentum, timm's (muon takes rates as AdamW does, lion about a "
        "tenth of them), or bitsandbytes' AdamW whose moments have 8 bits.",
        choices=("adamw", "sgd", *_OF_TIMM, "adamw_8bit"),
    )
    learning_rate: float = argument(1e-3, help="Peak learning rate.")
    head_learning_rate: float | None = argument(
        None, help="Peak learning rate of what follows the last layer; learning_rate when not given."
    )
    sgd_momentum: float = argument(0.9, help="sgd: the part of the last step that is taken again.")
    lr_base_batch_size: int | None = argument(
        None, help="Take learning_rate as that of so many images in a step, and scale it to the real number."
    )
    gradual_unfreezing_epochs: int | None = argument(
        None, help="Train the head alone at first, and all layers after so many epochs, one more at a time downwards."
    )
    layer_decay: float = argument(1.0, help="Factor of the learning rate from each layer to the one below it.")
    weight_decay: float = argument(0.05, help="Decay of weights; biases, norms, tokens and positions have none.")
    adam_beta1: float = argument(0.9, help="AdamW's decay of the mean gradient.")
    adam_beta2: float = argument(0.999, help="AdamW's decay of the squared gradient.")
    adam_epsilon: float = argument(1e-8, help="AdamW's epsilon.")
    max_grad_norm: float | None = argument(1.0, help="Clip the gradients to this norm; 0 never clips.")
    lr_scheduler_type: Schedule = argument("cosine", help="Schedule of transformers.get_scheduler.")
    lr_scheduler_kwargs: Options = argument(Options, help="More of the schedule, such as min_lr=1e-5.")
    warmup_steps: int = argument(0, help="Optimizer steps of linear warm-up.")
    warmup_ratio: float = argument(0.0, help="Warm-up as a part of all steps, when warmup_steps is 0.")
    torch_compile: bool = argument(False, help="Compile the model: slow to start, then faster, above all on a GPU.")
    mixed_precision: str | None = argument(
        None, help="Precision; as `accelerate launch` was told when not given.", choices=["no", "bf16", "fp16"]
    )

    def __post_init__(self) -> None:
        for name in (
            "num_train_epochs",
            "max_train_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
        ):
            check_range(name, getattr(self, name), 1)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("head_learning_rate", self.head_learning_rate, 0, open_low=True)
        check_range("sgd_momentum", self.sgd_momentum, 0, 1, open_low=True)
        check_range("lr_base_batch_size", self.lr_base_batch_size, 1)
        check_range("gradual_unfreezing_epochs", self.gradual_unfreezing_epochs, 1)
        check_range("layer_decay", self.layer_decay, 0, 1, open_low=True)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("adam_beta1", self.adam_beta1, 0, 1)
        check_range("adam_beta2", self.adam_beta2, 0, 1)
        check_range("max_grad_norm", self.max_grad_norm, 0)
        check_range("warmup_steps", self.warmup_steps, 0)
        check_range("warmup_ratio", self.warmup_ratio, 0, 1)
        if self.lr_scheduler_type not in get_args(Schedule):
            raise ValueError(
                f"--lr_scheduler_type must be one of {', '.join(get_args(Schedule))}, found {self.lr_scheduler_type!r}"
            )


def _decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Matrices of linear and convolution layers and of embeddings of words decay.

    Biases, norms, and parameters that a module holds by itself (tokens, positions, queries, scales) do not.
    """
    is_weight = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)) and parameter.ndim >= 2
    return is_weight and "position" not in name


def parameter_groups(model: nn.Module, arguments: OptimizationArguments, learning_rate: float) -> list[dict]:
    """The trainable parameters in groups of equal weight decay and learning rate.

    With `layer_decay` the learning rate falls by that factor from the head to each layer below (BEiT, 2106.08254);
    with `head_learning_rate` the head's is that, scaled as `learning_rate` was.

    Raises:
        ValueError: `layer_decay` is not 1, or there is a rate of the head, and nothing says which layer a parameter
            belongs to.
    """
    depths: dict[int, int] = {}
    of_head, by_muon = arguments.head_learning_rate, arguments.optim == "muon"
    if by_muon:
        with contextlib.suppress(ValueError):  # where no head is known, it is taken for another matrix
            depths = parameter_depths(model)
    if arguments.layer_decay != 1 or of_head is not None:
        depths = parameter_depths(model)
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                decay = arguments.weight_decay if _decays(module, f"{module_name}.{name}", parameter) else 0.0
                rate = learning_rate * arguments.layer_decay ** (deepest - depths.get(id(parameter), deepest))
                if of_head is not None and depths[id(parameter)] == deepest:
                    rate = of_head * learning_rate / arguments.learning_rate
                is_hidden = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and parameter.ndim >= 2
                is_hidden = is_hidden and depths.get(id(parameter), 0) < max(deepest, 1)
                groups.setdefault((decay, rate, is_hidden or not by_muon), []).append(parameter)
    # The paper's Muon is for hidden matrices: embeddings, heads and vectors take timm's AdamW.
    return [
        {"params": parameters, "weight_decay": d, "lr": lr, **({"use_fallback": not is_hidden} if by_muon else {})}
        for (d, lr, is_hidden), parameters in groups.items()
    ]


def build_optimizer(
    arguments: OptimizationArguments,
    global_batch_size: float,
    groups: Callable[[OptimizationArguments, float], list[dict]],
) -> torch.optim.Optimizer:
    """The optimizer, its update fused into one kernel.

    Args:
        global_batch_size: samples in one optimizer step, to scale the learning rate by where that is asked for.
        groups: the arguments and the learning rate to the groups of parameters, as `Task.parameter_groups`.
    """
    learning_rate = arguments.learning_rate
    if arguments.lr_base_batch_size is not None:
        learning_rate *= global_batch_size / arguments.lr_base_batch_size
    if arguments.optim not in ("adamw", "sgd"):
        return _of_libraries(arguments, groups(arguments, learning_rate), learning_rate)
    if arguments.optim == "sgd":
        return torch.optim.SGD(
            groups(arguments, learning_rate),
            lr=learning_rate,
            momentum=arguments.sgd_momentum,
            nesterov=True,
            fused=True,
        )
    return torch.optim.AdamW(
        groups(arguments, learning_rate),
        lr=learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=True,
    )


def _of_libraries(arguments: OptimizationArguments, groups: list[dict], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer of timm's or bitsandbytes'.

    Raises:
        ValueError: the installed version of the library does not have it.
    """
    with extra("optimizers"):
        if arguments.optim == "adamw_8bit":
            import bitsandbytes.optim as library
        else:
            import timm.optim as library
    name = _OF_TIMM.get(arguments.optim, "AdamW8bit")
    if not hasattr(library, name):
        raise ValueError(f"--optim {arguments.optim}: {library.__name__} has no {name} before timm 1.0.23")
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return getattr(library, name)(groups, lr=learning_rate, **({} if arguments.optim == "muon" else {"betas": betas}))


def build_scheduler(optimizer: torch.optim.Optimizer, arguments: OptimizationArguments, num_steps: int) -> LambdaLR:
    """The learning rate's schedule over `num_steps` optimizer steps."""
    from transformers import get_scheduler

    return get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.warmup_steps or round(arguments.warmup_ratio * num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs) or None,
    )
