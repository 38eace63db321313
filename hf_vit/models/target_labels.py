"""What the labels of a text that is to be written are to a decoder: its input, and its loss.

Shapes: B batch, T tokens.
"""

from typing import Any

import torch
from torch import nn

from .losses import token_loss


class TargetLabelsMixin(nn.Module):
    """A model whose `get_decoder()` writes texts. The decoder's configuration says how labels are read."""

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels moved one position to the right behind `decoder_start_token_id`, -100 replaced by
        `pad_token_id`: (B, T) -> the same shape.

        Raises:
            ValueError: if the configuration has no `decoder_start_token_id`.
        """
        config = self._decoder_config
        if config.decoder_start_token_id is None:
            raise ValueError(
                "decoder_start_token_id must be a token to make the decoder's input from labels, got None"
            )
        start = labels.new_full((labels.shape[0], 1), config.decoder_start_token_id)
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == -100, config.pad_token_id or 0)

    def loss_of_labels(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Cross entropy with `label_smoothing` of `logits[:, i]` and `labels[:, i]`, a mean over the labels that count
        (`ignored_labels` do not), or their sum over `num_items_in_batch`; shape ().

        Args:
            logits: shape (B, T, vocabulary).
            labels: shape (B, T).
        """
        config = self._decoder_config
        return token_loss(
            logits,
            labels,
            ignored=config.ignored_labels,
            label_smoothing=config.label_smoothing,
            num_items_in_batch=num_items_in_batch,
        )

    @property
    def _decoder_config(self) -> Any:
        decoder: Any = self.get_decoder()  # type: ignore[operator]  # untyped there
        return decoder.config


__all__ = ["TargetLabelsMixin"]
