"""Patch kernels for other patches and channels.

Shapes: D hidden size.
"""

from __future__ import annotations

import torch
from torch import nn


def resample_kernel(kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The kernel for patches of another size that gives a resized patch the token of the original, or where the patch
    shrinks the nearest to it by least squares: FlexiViT's pseudo-inverse resize (2212.08013).

    Args:
        kernel: shape (D, channels, height, width).
        size: (height, width) of the new patches.

    Returns:
        Tensor of shape (D, channels, *size).
    """
    old = tuple(kernel.shape[-2:])
    if old == tuple(size):
        return kernel
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)  # one image a pixel
    resized = nn.functional.interpolate(basis, size=size, mode="bicubic", antialias=True)
    resize = resized.flatten(1)  # (old pixels, new pixels): the transpose of the resize as a matrix
    tokens = torch.linalg.pinv(resize) @ kernel.flatten(2).double().flatten(0, 1).t()  # (new pixels, D * channels)
    return tokens.t().reshape(*kernel.shape[:2], *size).to(kernel.dtype)


def adapt_channels(kernel: torch.Tensor, num_channels: int) -> torch.Tensor:
    """The kernel for images of another number of channels, as timm adapts them: for one channel the sum of all (an
    image of equal channels gives the same tokens), for others the kernels in turn, scaled to the same sum of tokens.

    Args:
        kernel: shape (D, channels, height, width).
        num_channels: of the new images.

    Returns:
        Tensor of shape (D, num_channels, height, width).
    """
    old = kernel.shape[1]
    if num_channels == old:
        return kernel
    if num_channels == 1:
        return kernel.float().sum(1, keepdim=True).to(kernel.dtype)
    repeats = -(-num_channels // old)
    repeated = kernel.float().repeat(1, repeats, 1, 1)[:, :num_channels]
    return (repeated * (old / num_channels)).to(kernel.dtype)


__all__ = ["adapt_channels", "resample_kernel"]
