"""Model code that travels beside the weights: which of it runs, the folder's own or the installed package's."""

import hashlib
import re
from pathlib import Path
from typing import Any

from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .tested_versions import fault_of_code, say_once

_SIBLING = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)


def code_digest(path: str | Path) -> str | None:
    """Return the SHA-256 digest of a file and of all siblings that it imports, they import, and so on, by name and
    content; None if one of them cannot be read."""
    unread, contents = [Path(path)], {}
    try:
        while unread:
            file = unread.pop()
            if file.name not in contents:
                contents[file.name] = file.read_text(encoding="utf-8")
                unread += [file.with_name(f"{name}.py") for name in _SIBLING.findall(contents[file.name])]
    except (OSError, UnicodeDecodeError):
        return None
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{contents[name]}\0".encode())
    return digest.hexdigest()


class CodeVersionMixin:
    """A configuration that notes, in the folder it is saved to, the digest of the code that is saved with it, and says
    so when the installed package runs a folder whose own code is other code.

    The module of the class must import all code of its models (where `TYPE_CHECKING`, never in fact): transformers
    runs one code for all folders of one name whose configurations import the same files.
    """

    # The Auto classes read the dictionary themselves, and the class's own `from_pretrained` gives no name.
    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig.get_config_dict`."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]  # a mixin
        cls._tell_of_other_code(config_dict, pretrained_model_name_or_path)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`."""
        if "name_or_path" in kwargs:
            cls._tell_of_other_code(config_dict, kwargs["name_or_path"])
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]  # a mixin

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig.save_pretrained`."""
        self.code_digest = code_digest(self._code_file())
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]  # a mixin

    @classmethod
    def _code_file(cls) -> Path:
        return Path(__file__).with_name(f"{cls.__module__.rpartition('.')[2]}.py")

    @classmethod
    def _tell_of_other_code(cls, config_dict: dict, folder: str | Path) -> None:
        package = __name__.partition(".")[0]
        if package == TRANSFORMERS_DYNAMIC_MODULE_NAME or "AutoConfig" not in (config_dict.get("auto_map") or {}):
            return
        own, theirs = code_digest(cls._code_file()), config_dict.get("code_digest")
        if Path(folder, cls._code_file().name).is_file():
            theirs = code_digest(Path(folder, cls._code_file().name))  # which may have been edited
        if own is not None and own != theirs and fault_of_code(folder) is None:  # of which the model tells
            say_once(
                f"{folder} has model code other than that of the installed {package}, which runs in "
                f"its place: to run its own, load it with trust_remote_code=True where {package} is not imported."
            )


__all__ = ["CodeVersionMixin", "code_digest"]
