"""Functions that a graph is made of: a classifier or body of images; encoder and decoder of a translator.

Shapes: B batch, S source tokens, T target tokens so far, L decoder layers, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_vit.models.cache_argument import CACHE_NAME

_LONGEST = 4096  # of the dynamic sizes; torch wants some limit


class ImageFunction(nn.Module):
    """(B, channels, height, width) -> logits (B, classes); of a body, (tokens, pooled) as far as there are both."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values)
        if hasattr(outputs, "logits"):
            return (outputs.logits.float(),)
        found = (outputs.last_hidden_state, outputs.pooler_output)
        return tuple(each.float() for each in found if each is not None)


class EncoderFunction(nn.Module):
    """Token ids and mask (B, S) -> keys and values of every decoder layer's cross-attention, (L, 2, B, H, S, K)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        body = self.model.model
        states = body.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        layers = [torch.stack(layer.cross_attention._keys_and_values(states, None)) for layer in body.decoder.layers]
        return (torch.stack(layers),)


class DecoderFunction(nn.Module):
    """The last token ids (B, 1), the source's mask (B, S), the encoder's result and the keys and values so far
    (L, 2, B, H, T, K) -> logits of the next token (B, vocabulary), and keys and values (L, 2, B, H, T + 1, K)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, source: torch.Tensor, past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, cross = DynamicCache(), DynamicCache()
        cache = EncoderDecoderCache(own, cross)
        decoder = self.model.model.decoder
        for i in range(len(decoder.layers)):
            own.update(past[i, 0], past[i, 1], i)
            cross.update(source[i, 0], source[i, 1], i)
            cache.is_updated[i] = True
        # Its values are not read: the cache holds what the layers would make of them.
        states = source.new_zeros(source.shape[2], source.shape[4], self.model.config.d_model)
        outputs = decoder(
            input_ids=input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            use_cache=True,
            **{CACHE_NAME: cache},
        )
        logits = self.model.lm_head(outputs.last_hidden_state[:, -1]).float()
        layers: list[Any] = own.layers
        return logits, torch.stack([torch.stack((layer.keys, layer.values)) for layer in layers])


@dataclass
class Part:
    """One graph: a function, an example of its inputs by name, and which of their sizes are dynamic.

    Args:
        name: of its file, without the ending.
        outputs: names of what it returns.
        others: more inputs, of other sizes, to compare its results with the model's.
    """

    name: str
    function: nn.Module
    inputs: dict[str, torch.Tensor]
    shapes: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]
    others: list[dict[str, torch.Tensor]]
    is_dynamic_in_size: bool = True

    def program(self) -> ExportedProgram:
        """The function as a graph of torch."""
        with torch.no_grad():
            return torch.export.export(self.function.eval(), (), dict(self.inputs), dynamic_shapes=self.shapes)

    def samples(self) -> Iterator[dict[str, torch.Tensor]]:
        """The example and the other inputs."""
        yield self.inputs
        yield from self.others


def image_part(model: Any, dynamic_size: bool) -> Part:
    """The graph of a Vision Transformer, for any number of images, and of any size where `dynamic_size`."""
    config = model.config
    (height, width), (rows, columns) = config.patch_shape, config.grid_size
    generator = torch.Generator().manual_seed(0)

    def images(batch: int, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        shape = (batch, config.num_channels, grid[0] * height, grid[1] * width)
        return {"pixel_values": torch.randn(shape, generator=generator)}

    shapes: dict[int, Any] = {0: Dim("batch", min=1, max=_LONGEST)}
    others = [images(1, (rows, columns)), images(3, (rows, columns))]
    if dynamic_size:
        dims = [Dim(name, min=2, max=_LONGEST) for name in ("rows", "columns")]  # of one, torch makes another graph
        shapes |= {2: height * dims[0], 3: width * dims[1]}
        others += [images(2, (rows + 1, columns + 2)), images(1, (max(rows - 1, 2), columns))]
    has_head = hasattr(model, "classifier")
    pooled = ("pooler_output",) if getattr(model, "pooler", None) is not None else ()
    outputs = ("logits",) if has_head else ("last_hidden_state", *pooled)
    example = images(2, (rows, columns))
    return Part("model", ImageFunction(model), example, {"pixel_values": shapes}, outputs, others, dynamic_size)


def translator_parts(model: Any) -> list[Part]:
    """The graphs of a translator's encoder and of one step of its decoder."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    batch, source, past = (
        Dim(name, min=low, max=_LONGEST) for name, low in (("batch", 1), ("source", 1), ("past", 0))
    )
    vocabulary = config.encoder_vocab_size or config.vocab_size
    heads, layers = config.decoder_attention_heads, config.decoder_layers

    def texts(batch_size: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(vocabulary, (batch_size, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, max(length // 2, 1) :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    encoder = EncoderFunction(model)

    def steps(sources: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            (keys,) = encoder(**sources)
        past = torch.randn(layers, 2, len(keys[0, 0]), heads, length, keys.shape[-1], generator=generator)
        ids = torch.randint(config.vocab_size, (len(keys[0, 0]), 1), generator=generator)
        return {
            "input_ids": ids,
            "attention_mask": sources["attention_mask"],
            "source": keys,
            "past": past.to(keys.dtype),
        }

    example, others = texts(2, 7), [texts(1, 1), texts(3, 12)]
    return [
        Part(
            "encoder",
            encoder,
            example,
            {"input_ids": {0: batch, 1: source}, "attention_mask": {0: batch, 1: source}},
            ("source",),
            others,
        ),
        Part(
            "decoder",
            DecoderFunction(model),
            steps(example, 3),
            {
                "input_ids": {0: batch},
                "attention_mask": {0: batch, 1: source},
                "source": {2: batch, 4: source},
                "past": {2: batch, 4: past},
            },
            ("logits", "present"),
            [steps(others[0], 0), steps(others[1], 9)],
        ),
    ]


__all__ = ["Part", "image_part", "translator_parts"]
