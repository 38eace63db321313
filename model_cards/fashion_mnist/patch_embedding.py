"""From an image to a grid of patch tokens.

Shapes: B batch.
"""

import math
from typing import Any

import torch
from torch import nn

from .cpu_linear import linear
from .cpu_paths import strided_convolution_may_be_wrong


class PatchEmbedding(nn.Module):
    """(batch, channels, height, width) -> (batch, rows * columns, hidden_size), patches in raster order.

    A convolution whose stride equals its kernel sees each pixel once, so it is computed as what it is: one linear map
    of each patch, with the convolution's kernel flattened to (hidden_size, channels * patch height * patch width).
    With a `stem`, the map takes the patches of the stem's output.

    `forward` is told the [`~PatchEmbedding.grid_size`] of the images, which checks them.

    Args:
        config: gives `num_channels`, `hidden_size`, `patch_shape`, `patch_embedding`, `patch_bias` and
            `patch_fit`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_shape = config.patch_shape
        self.patch_fit = config.patch_fit
        stem = _STEMS.get(config.patch_embedding)
        self.stem = stem(config) if stem else None
        channels = self.stem.out_channels if self.stem else config.num_channels
        stride = self.stem.stride if self.stem else 1
        self.map_patch_shape = (self.patch_shape[0] // stride, self.patch_shape[1] // stride)
        self.projection = nn.Linear(
            channels * math.prod(self.map_patch_shape), config.hidden_size, bias=config.patch_bias
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters that meet the images, other than quantised weights."""
        bias = next(self.stem.parameters()) if self.stem else self.projection.bias
        meets_images = self.projection.weight if bias is None else bias
        # Of torch.ao's quantized layers, which take fp32, both are methods.
        is_float = isinstance(meets_images, torch.Tensor) and meets_images.is_floating_point()
        return meets_images.dtype if is_float else torch.float32

    def grid_size(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of patches in these images.

        Raises:
            ValueError: if their channels or their height and width do not fit the model.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}"
            )
        size = tuple(pixel_values.shape[2:])
        is_exact, smallest = self.patch_fit == "exact", self.patch_shape if self.patch_fit == "crop" else (1, 1)
        if any(
            length < least or (length % patch and is_exact)
            for length, least, patch in zip(size, smallest, self.patch_shape)
        ):
            nearest = " or ".join(
                f"{name} {' or '.join(str(n) for n in _nearest_multiples(length, patch))}"
                for name, length, patch in zip(("height", "width"), size, self.patch_shape)
                if length % patch or length == 0
            )
            raise ValueError(
                f"pixel_values must have a height and width that are multiples of the patch size "
                f"{self.patch_shape[0]} x {self.patch_shape[1]}, got {size[0]} x {size[1]}; nearest: {nearest}"
            )
        if self.patch_fit == "pad":
            return -(-size[0] // self.patch_shape[0]), -(-size[1] // self.patch_shape[1])
        return size[0] // self.patch_shape[0], size[1] // self.patch_shape[1]

    def forward(self, pixel_values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        rows, columns = grid_size
        if self.patch_fit == "crop":
            pixel_values = pixel_values[:, :, : rows * self.patch_shape[0], : columns * self.patch_shape[1]]
        if self.patch_fit == "pad":
            below = rows * self.patch_shape[0] - pixel_values.shape[2]
            right = columns * self.patch_shape[1] - pixel_values.shape[3]
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, below))
        features = self.stem(pixel_values) if self.stem else pixel_values
        batch_size, channels = features.shape[:2]
        height, width = self.map_patch_shape
        patches = features.reshape(batch_size, channels, rows, height, columns, width)
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, channels, height, width)
        return linear(self.projection, patches.reshape(batch_size, rows * columns, channels * height * width))


def _nearest_multiples(length: int, patch: int) -> list[int]:
    below = length // patch * patch
    return [multiple for multiple in (below, below + patch) if multiple > 0]


class _Stem(nn.Module):
    """Convolutions before the linear map: (batch, channels, height, width) -> (batch, out_channels, height / stride,
    width / stride)."""

    stride: int
    out_channels: int
    layers: nn.Sequential

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = pixel_values
        for layer in self.layers:
            is_strided = isinstance(layer, nn.Conv2d) and layer.stride[0] > 1
            convolve: Any = _convolve_by_matmul if is_strided and strided_convolution_may_be_wrong(features) else None
            features = convolve(layer, features) if convolve else layer(features)
        return features


class ConvStem(_Stem):
    """Convolutions of stride 2 that halve the resolution while the patch can be halved (2106.14881: early convolutions
    help Transformers see better), or one of stride 1 where the patch is odd, each followed by `num_stem_blocks`
    residual blocks. Channels double, from at least 8, up to half of `hidden_size`.

    (batch, channels, height, width) -> (batch, out_channels, height / stride, width / stride)

    Args:
        config: gives `num_channels`, `hidden_size`, `patch_shape` and `num_stem_blocks`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        num_halvings = _num_halvings(math.gcd(*config.patch_shape))
        num_layers = max(num_halvings, 1)
        widths = [max(config.hidden_size // 2 ** (num_layers - i), 8) for i in range(num_layers)]
        self.stride = 2**num_halvings
        self.out_channels = widths[-1]
        layers = []
        for in_channels, out_channels in zip([config.num_channels, *widths], widths):
            layers += [*_convolution(in_channels, out_channels, stride=2 if num_halvings else 1), nn.ReLU()]
            layers += [ResidualBlock(out_channels) for _ in range(config.num_stem_blocks)]
        self.layers = nn.Sequential(*layers)


class LVViTStem(_Stem):
    """The stem of LV-ViT (2104.10858): a convolution of 7 x 7 and stride 2, then two of 3 x 3, of 64 channels each,
    with group norms in place of the paper's batch norms.

    Args:
        config: gives `num_channels`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.stride, self.out_channels = 2, 64
        layers: list[nn.Module] = []
        for in_channels, size, stride in ((config.num_channels, 7, 2), (64, 3, 1), (64, 3, 1)):
            layers += [*_convolution(in_channels, 64, size, stride), nn.ReLU()]
        self.layers = nn.Sequential(*layers)


def _convolve_by_matmul(convolution: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    """`convolution(features)` for a square, odd kernel, stride 2, padding that keeps the grid and no bias, as one
    matmul with the pixels that each output sees: (batch, channels, height, width) -> (batch, channels, height / 2,
    width / 2)."""
    height, width = features.shape[2] // 2, features.shape[3] // 2
    size, padding = convolution.kernel_size[0], convolution.kernel_size[0] // 2
    padded = nn.functional.pad(features, (padding,) * 4)
    offsets = [(i, j) for i in range(size) for j in range(size)]
    pixels = [padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] for i, j in offsets]
    kernel = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # (out channels, size * size * channels)
    return torch.matmul(kernel, torch.cat(pixels, dim=1).flatten(2)).unflatten(2, (height, width))


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3, whose result is added to what they were given (1512.03385).

    (batch, channels, height, width) -> the same shape
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(features + self.layers(features))


def _convolution(in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return (
        nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False),
        # Batch statistics would tie samples to each other and to the number of processes.
        nn.GroupNorm(math.gcd(out_channels, 8), out_channels),
    )


def _num_halvings(length: int) -> int:
    return (length & -length).bit_length() - 1


_STEMS = {"hybrid": ConvStem, "lvvit": LVViTStem}

__all__ = ["ConvStem", "LVViTStem", "PatchEmbedding", "ResidualBlock"]
