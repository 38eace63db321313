"""Samples of a split as tensors: decoded, transformed by their keys, with labels of patches where there are such.

Shapes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_vit.sample_keys import SampleKey
from hf_vit.vision.decoding import decode_pixels


class ImageView(torch.utils.data.Dataset):
    """Samples of a split as tensors; the key decides the view.

    Items hold `pixel_values` (3, H, W) uint8, `labels` () int64 and `sample_key` (3,) int64. A plain integer index
    stands for `SampleKey(0, index, 0)`.

    Args:
        split: columns `image` and `label`.
        transform: decoded images, (3, height, width) uint8 each, and their keys to as many (3, H, W) uint8.
        keep_in_memory: decode all images now and never again.
        num_channels: 3, or 1 of grey images.
        token_labels: index, row and positions of a view (see `TrainTransform.with_positions`) to the `token_labels`
            (patches, classes) that the items then have, too.
    """

    def __init__(
        self,
        split: Dataset,
        transform: Callable[[list[torch.Tensor], list[SampleKey]], Sequence[torch.Tensor] | torch.Tensor],
        *,
        keep_in_memory: bool = False,
        num_channels: int = 3,
        token_labels: Callable[[int, Mapping[str, Any], torch.Tensor], torch.Tensor] | None = None,
    ):
        self.token_labels = token_labels
        self.decoded = DecodedImages(split, num_channels) if keep_in_memory else None
        self.num_channels = num_channels
        self.split = split.remove_columns(["image"]) if keep_in_memory else split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> dict[str, torch.Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[dict[str, torch.Tensor]]:
        full = [key if isinstance(key, tuple) else SampleKey(0, key, 0) for key in keys]
        rows = self.split[[key.index for key in full]]
        if self.decoded is None:
            images = [decode_pixels(image, key.index, self.num_channels) for image, key in zip(rows["image"], full)]
        else:
            images = [self.decoded[key.index] for key in full]
        if self.token_labels is not None:
            return self._with_token_labels(images, rows, full)
        return [
            {"pixel_values": pixels, "labels": torch.tensor(label), "sample_key": torch.tensor(key)}
            for pixels, label, key in zip(self.transform(images, full), rows["label"], full)
        ]

    def _with_token_labels(
        self, images: list[torch.Tensor], rows: Mapping[str, list[Any]], keys: list[SampleKey]
    ) -> list[dict[str, torch.Tensor]]:
        items, label_patches = [], self.token_labels
        assert label_patches is not None
        transform: Any = self.transform
        for i, (pixels, positions) in enumerate(transform.with_positions(images, keys)):
            row = {**{name: values[i] for name, values in rows.items()}, "size": images[i].shape[-2:]}
            item = {"pixel_values": pixels, "labels": torch.tensor(row["label"]), "sample_key": torch.tensor(keys[i])}
            items.append({**item, "token_labels": label_patches(keys[i].index, row, positions)})
        return items


class DecodedImages:
    """The decoded images of a split, whatever their sizes, one after the other in one tensor that workers share."""

    def __init__(self, split: Dataset, num_channels: int = 3):
        images = [decode_pixels(image, index, num_channels) for index, image in enumerate(split["image"])]
        self.shapes = [image.shape for image in images]
        self.starts = np.cumsum([0, *(image.numel() for image in images)]).tolist()
        self.pixels = torch.cat([image.flatten() for image in images])

    def __getitem__(self, index: int) -> torch.Tensor:
        """(3, height, width) uint8."""
        return self.pixels[self.starts[index] : self.starts[index + 1]].view(self.shapes[index])
