"""Packages that are not installed with this one alone, and where to get it."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """A module is not installed that an extra of this package brings."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports that need an extra of this package: `with extra("train"): import accelerate`.

    Raises:
        MissingExtraError: one of them is not installed; the message names the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "hf_vit").partition(".")[0] == "hf_vit":
            raise
        message = f'{error.name} is not installed: pip install "hf_vit[{name}]"'
        raise MissingExtraError(message, name=error.name) from error
