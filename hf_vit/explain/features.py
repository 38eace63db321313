"""The principal components of a picture's final patch vectors, as colours."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_vit.explain.groups import of_all_tokens


@torch.no_grad()
def feature_components(model: PreTrainedModel, pixel_values: torch.Tensor, num_components: int = 3) -> torch.Tensor:
    """The first principal components of each image's final patch vectors (as DINOv2, 2304.07193, shows them).

    Args:
        model: an `HfViTModel` or a model with one inside.
        pixel_values: normalised images, shape (batch, channels, height, width).
        num_components: at most so many; those that the patches lack are 0.5.

    Returns:
        fp32 tensor of shape (batch, rows, columns, num_components) in [0, 1], each component over its own range. The
        sign of a component is that which makes its largest loading positive.
    """
    body: Any = model.base_model
    grid_size = body.embeddings.patch_embedding.grid_size(pixel_values)
    hidden_states = of_all_tokens(body, body(pixel_values, return_dict=True)).float()
    patches = hidden_states[:, body.config.num_prefix_tokens :]
    patches = patches - patches.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd(patches, full_matrices=False)  # (B, components, D)
    axes = axes[:, :num_components]
    largest = axes.gather(2, axes.abs().argmax(2, keepdim=True))
    scores = patches @ (axes * largest.sign()).transpose(1, 2)  # (B, N, components)
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    spread = (high - low).clamp(min=torch.finfo(scores.dtype).tiny)
    scores = torch.where(high > low, (scores - low) / spread, 0.5)
    missing = num_components - scores.shape[2]
    return torch.nn.functional.pad(scores, (0, missing), value=0.5).unflatten(1, grid_size)


__all__ = ["feature_components"]
