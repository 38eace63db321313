"""Tiny Transformers for the tests, in every position embedding."""

import torch
from transformers.generation.streamers import BaseStreamer

from hf_vit import HfTransformerConfig, HfTransformerForConditionalGeneration

VOCAB_SIZE = 40
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
# Between them every position embedding, norm, activation and option of the model.
ARCHITECTURES = {
    "sinusoidal-post": {},
    "learned-pre": {"position_embedding": "learned", "norm_position": "pre", "activation_function": "gelu"},
    "relative-pre-rms": {
        "position_embedding": "relative",
        "norm_position": "pre",
        "norm_type": "rms_norm",
        "use_bias": False,
        "scale_embedding": False,
    },
    "relative_xl-post": {"position_embedding": "relative_xl", "tie_word_embeddings": False, "lm_head_bias": True},
    "rope-pre-swiglu": {
        "position_embedding": "rope",
        "norm_position": "pre",
        "activation_function": "swiglu",
        "qk_norm": True,
        "share_encoder_decoder_embeddings": False,
        "encoder_vocab_size": VOCAB_SIZE + 3,
    },
}


def make_model(model_class=HfTransformerForConditionalGeneration, **options):
    """A model in eval mode with every parameter random, so that none can be missing unnoticed."""
    model = model_class(HfTransformerConfig(**{**SIZES, **options})).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + name.endswith("norm.weight")
    return model


def tokens(batch_size=3, length=9, seed=1):
    return torch.randint(3, VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def pad(rows, side="right", length=None):
    """Rows of token ids as one batch, and its mask."""
    length = length or max(len(row) for row in rows)
    padded, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        padded[i, place], mask[i, place] = row, 1
    return padded, mask


class Collector(BaseStreamer):
    """Keeps the tokens of a text as they come."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True
