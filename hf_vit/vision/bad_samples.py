"""Images that cannot be decoded, found before training so that every epoch, resumed or not, is the same."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader

from hf_vit.vision.decoding import decode

_BATCH_SIZE = 256


class _Decodable:
    """Whether each image of a split decodes."""

    def __init__(self, split: Dataset) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> bool:
        try:
            decode(self.split[index]["image"], index)
        except ValueError:
            return False
        return True


def find_bad_samples(split: Dataset, num_workers: int) -> dict[int, str]:
    """Indices of the images that cannot be decoded, each with its file, or its number where it has none; decodes all
    of them once."""
    decodable: Any = _Decodable(split)
    loader: DataLoader[Any] = DataLoader(decodable, batch_size=_BATCH_SIZE, num_workers=num_workers, collate_fn=list)
    bad = [index for index, good in enumerate(good for batch in loader for good in batch) if not good]
    return {index: (split[index]["image"] or {}).get("path") or f"sample {index}" for index in bad}
