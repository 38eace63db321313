"""Parts shared by the configurations."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError

# Activations that gate one half of the hidden layer by the other (2002.05202), and the function on the gate.
GATED_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def strict_config(cls: Any) -> Any:
    """`huggingface_hub.dataclasses.strict`, whose complaint about a field's type is a `ValueError` too.

    Raises:
        ValueError: on construction or assignment, if a value is not of its field's type.
    """
    cls = strict(cls)
    assign = cls.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        try:
            assign(self, name, value)
        except StrictDataclassFieldValidationError as error:
            allowed = cls.__dataclass_fields__[name].type
            allowed = allowed.__name__ if isinstance(allowed, type) else allowed
            raise ValueError(f"{name} must be of type {allowed}, got {value!r}") from error

    cls.__setattr__ = __setattr__
    return cls


__all__ = ["GATED_ACTIVATIONS", "PROBLEM_TYPES", "strict_config"]
