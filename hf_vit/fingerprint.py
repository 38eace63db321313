"""A digest of the files that decide what a model answers, which its record keeps."""

import os
from collections.abc import Iterator
from pathlib import Path

from hf_vit.files import chunks, digest, read_object

_RUN_FILE = "run.json"


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files that decide what the model in `folder` answers: weights, configurations and code."""

    def parts() -> Iterator[bytes]:
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.py"), *folder.glob("*config.json")]):
            yield f"{path.name}\0{path.stat().st_size}\0".encode()
            yield from chunks(path)

    return digest(parts())


def check_fingerprint(folder: str | os.PathLike[str]) -> None:
    """Compare a model's files with the digest that its record keeps of them, if there is such a folder, with weights
    and such a record. Runs nothing of it.

    Raises:
        ValueError: they are others than when the card was written: damaged, or changed since.
    """
    folder = Path(folder)
    if not (folder / _RUN_FILE).is_file() or not any(folder.glob("*.safetensors")):
        return
    measured = read_object(folder / _RUN_FILE).get("card")
    expected = measured.get("files_sha256") if isinstance(measured, dict) else None
    if expected is not None and fingerprint(folder) != expected:
        raise ValueError(
            f"folder: weights, configuration or code in {str(folder)!r} are not those that {_RUN_FILE} keeps the "
            "SHA-256 of: they are damaged, or were changed; fetch them again, or, if the change was yours, run "
            "`hf-vit card` on it"
        )
