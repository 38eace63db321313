"""Annotators of patches: classifiers that answer for each position of an image, not for the whole of it.

Shapes: B batch, T tokens, D width of the features, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_vit.tasks.image_classification.distillation import Teacher


class Annotator(Teacher):
    """One frozen classifier on the student's views, its head applied to each position of its last features: of a
    convolutional network to each position of the last feature map, of a Transformer to each patch, of a model with a
    token labeling head its own answers.

    Args:
        name: a model of the Hub or a folder.
        class_names: the student's, in its order.
        options: those of `Teacher`.

    Raises:
        ValueError: as for `Teacher`, or the model has no features by position that its head takes.
    """

    def __init__(self, name: str, class_names: list[str], **options: Any):
        flags = ("--token_label_annotator", "--token_label_class_order")
        super().__init__(name, class_names, flags=flags, **options)
        with torch.no_grad():
            self(torch.zeros(1, 3, *self.size))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) in 0..255 to logits (B, C, rows, columns) in the student's order of classes."""
        return self._dense(self.seen(pixels))[:, self.order]

    def _dense(self, pixel_values: torch.Tensor) -> torch.Tensor:
        timm_model = getattr(self.model, "timm_model", None)
        if timm_model is not None:
            return self._of_timm(timm_model, pixel_values)
        if getattr(self.model.config, "use_token_labeling_head", False):
            logits = self.model(pixel_values=pixel_values).token_logits
            return self._on_grid(logits, pixel_values)
        outputs = self.model.base_model(pixel_values)
        features, heads = outputs.last_hidden_state, self._heads()
        if features.ndim == 4:
            rows, columns = features.shape[2:]
            each = features.permute(0, 2, 3, 1).flatten(0, 2)  # (B * rows * columns, D)
            each = self._norm_after_pooling(features, outputs.pooler_output)(each)
            if outputs.pooler_output.ndim == 4:
                each = each[:, :, None, None]
            logits = heads(each).unflatten(0, (-1, rows, columns))
            return logits.permute(0, 3, 1, 2)
        normed = getattr(self.model.base_model, "norm_pooled", nn.Identity())(features)
        return self._on_grid(heads(normed), pixel_values)

    def _heads(self) -> Any:
        """Mean of the classifiers beside the body."""
        prefix, width = self.model.base_model_prefix, getattr(self.model.config, "pooled_size", None)
        heads = [module for name, module in self.model.named_children() if name != prefix]
        if not heads or (width is not None and width != self.model.config.hidden_size):
            raise self._without_positions()

        def mean_of_heads(features: torch.Tensor) -> torch.Tensor:
            try:
                return torch.stack([head(features) for head in heads]).mean(0)
            except RuntimeError as error:  # it takes more than one position's features
                raise self._without_positions() from error

        return mean_of_heads

    def _norm_after_pooling(self, features: torch.Tensor, pooled: torch.Tensor) -> nn.Module:
        """Return what the body does to the mean of the features before the head takes it."""
        mean, pooled = features.mean((2, 3)), pooled.flatten(1)
        for norm in (nn.Identity(), getattr(self.model.base_model, "layernorm", None)):
            if norm is not None and torch.allclose(norm(mean), pooled, rtol=1e-2, atol=1e-3):
                return norm
        raise self._without_positions()

    def _of_timm(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Each position, as a feature map of one pixel or a sequence of one patch, through the head."""
        features = model.forward_features(pixel_values)
        if features.ndim == 3:
            prefix = getattr(model, "num_prefix_tokens", 0)
            patches = features[:, prefix:]
            alone = patches.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)  # (B * patches, prefix + 1, D)
            return self._on_grid(model.forward_head(alone).unflatten(0, patches.shape[:2]), pixel_values)
        if features.ndim != 4:
            raise self._without_positions()
        channels_last = features.shape[1] != model.num_features
        each = features if channels_last else features.permute(0, 2, 3, 1)  # (B, rows, columns, D)
        alone = each.flatten(0, 2)
        alone = alone[:, None, None] if channels_last else alone[:, :, None, None]
        return model.forward_head(alone).unflatten(0, each.shape[:3]).permute(0, 3, 1, 2)

    def _on_grid(self, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, T, C), patches last in the sequence, -> (B, C, rows, columns)."""
        patch = getattr(self.model.config, "patch_size", None) or 1
        height, width = (patch, patch) if isinstance(patch, int) else patch
        rows, columns = pixel_values.shape[2] // height, pixel_values.shape[3] // width
        if rows * columns > logits.shape[1]:  # of a Transformer that merges its patches
            rows = columns = round(logits.shape[1] ** 0.5)
            if rows * columns != logits.shape[1]:
                raise self._without_positions()
        return logits[:, -rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    def _without_positions(self) -> ValueError:
        return ValueError(
            f"--token_label_annotator {self.name!r}: {type(self.model).__name__} gives no features by position "
            "that its classifier takes"
        )
