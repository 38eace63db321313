"""Masks of padded texts that no device has to be waited for."""

import torch
from transformers import masking_utils
from transformers.configuration_utils import PreTrainedConfig


def create_bidirectional_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    encoder_hidden_states: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Mask for attention to all tokens but the padding, as `transformers.masking_utils.create_bidirectional_mask`.

    Where there is no padding, transformers leaves the mask out, which it finds by reading it back from the device. In
    training by SDPA, and off the CPU, the mask is taken as it is instead.

    Args:
        inputs_embeds: embeddings of the queries, shape (batch, queries, d_model).
        attention_mask: shape (batch, keys), 1 for tokens, 0 for padding; or as attention takes it; or `None`.
        encoder_hidden_states: of the keys, if they are others, shape (batch, keys, d_model).
    """
    options = {"config": config, "inputs_embeds": inputs_embeds, "encoder_hidden_states": encoder_hidden_states}
    in_training = torch.is_grad_enabled() and config._attn_implementation == "sdpa"
    if attention_mask is None or not in_training:
        return masking_utils.create_bidirectional_mask(attention_mask=attention_mask, **options)
    if attention_mask.device.type == "cpu":
        return masking_utils.create_bidirectional_mask(attention_mask=attention_mask, **options)
    return broadcast_mask(attention_mask)


def broadcast_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mask with a row for every head and query: (batch, keys) -> (batch, 1, 1, keys) bool."""
    return attention_mask[:, None, None, :].bool() if attention_mask.ndim == 2 else attention_mask


__all__ = ["broadcast_mask", "create_bidirectional_mask"]
