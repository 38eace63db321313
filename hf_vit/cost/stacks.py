"""Memory of the encoder-decoder and of the detector in inference and in training, in closed form.

Letters: B batch, S source tokens, T target tokens, N patches, Q queries, D width, M width of an MLP, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_vit.cost.detr import backbone_of, detr_parts, num_queries
from hf_vit.cost.memory import Memory, Setup, kept_of_weights, layer_saved_bytes, mlp_copies, saved_bytes, whole_memory
from hf_vit.cost.memory import working_bytes as vit_working_bytes
from hf_vit.cost.parts import attention_matrix_bytes, mlp_width
from hf_vit.cost.transformer import cache_bytes, transformer_parts
from hf_vit.cost.vit import num_patches, tokens_by_layer
from hf_vit.models.configuration_hf_detr import HfDetrConfig
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig


@dataclass(frozen=True)
class _Layer:
    """A layer's rows (tokens of the whole batch), those that its cross-attention sees, and its sizes."""

    batch_size: int
    rows: int
    encoder_rows: int
    size: int
    heads: int
    ffn: int
    hidden_act: str
    dropout: bool
    attention_dropout: bool
    positions: bool = False  # are added to what makes queries and keys, in matmuls of their own
    bias: bool = False  # learnt, of the cross-attention, for which SDPA holds the weights

    def pairs(self, keys: int) -> int:
        """Numbers of attention weights."""
        return self.rows * keys // self.batch_size * self.heads

    def saved(self, setup: Setup) -> int:
        """Bytes that autograd keeps: of each branch the residual sum and the norm's output, 2 B T D; of attention
        queries, keys, values and the input of the projection, 4 B T D, twice the first three with positions, and its
        weights where they are held; of the MLP the hidden layer before and after the activation, 2 B T M."""
        compute = setup.compute_bytes
        branches = 3 if self.encoder_rows else 2
        numbers = branches * self.rows * self.size * (1 + self.dropout) + self._attention_numbers(self.rows, 1)
        kept = self._weights(setup, self.rows, False)
        if self.encoder_rows:
            numbers += self._attention_numbers(self.encoder_rows, 2)
            kept += self._weights(setup, self.encoder_rows, self.bias)
        numbers += mlp_copies(self.hidden_act) * self.rows * self.ffn
        stream = branches * self.rows * (self.size + 2) * setup.parameter_bytes
        return kept + numbers * compute + stream

    def _attention_numbers(self, keys: int, matmuls: int) -> int:
        states, of_keys = self.rows * self.size, keys * self.size
        if not self.positions:
            return 2 * states + 2 * of_keys
        # A matmul's output is kept whole where a part of it is needed.
        return 8 * states if matmuls == 1 else 3 * states + 5 * of_keys

    def _weights(self, setup: Setup, keys: int, held: bool) -> int:
        whole = setup.attn_implementation == "eager" or held or self.attention_dropout
        return kept_of_weights(self.pairs(keys) if whole else 0, self.rows * self.heads, setup, self.attention_dropout)

    def working(self, setup: Setup) -> int:
        """Bytes for a moment on top: in training the gradient of the MLP's hidden layer, or those of the weights of
        attention; in inference what a layer holds."""
        compute, keys = setup.compute_bytes, max(self.rows, self.encoder_rows)
        whole = setup.attn_implementation == "eager" or self.bias
        scores = self.pairs(keys) * (8 if compute == 4 else 8 - compute if setup.training else 8 + compute) * whole
        states, stream = self.rows * self.size * compute, self.rows * self.size * setup.parameter_bytes
        if setup.training:
            kept = mlp_copies(self.hidden_act) * self.rows * self.ffn * compute + stream + states
            return max(self.rows * self.ffn * compute, scores + 2 * states - kept)
        hidden = self.rows * (mlp_width(self.hidden_act, self.ffn) + self.ffn) * compute
        cross = 2 * self.encoder_rows * self.size * compute * (1 + self.positions)
        return max(stream + 6 * states + scores + cross, 3 * stream + 2 * states + hidden)


def _text_layer(config: HfTransformerConfig, setup: Setup, stack: str) -> _Layer:
    source, target = setup.batch_size * setup.source_tokens, setup.batch_size * setup.target_tokens
    return _Layer(
        batch_size=setup.batch_size,
        rows=source if stack == "encoder" else target,
        encoder_rows=0 if stack == "encoder" else source,
        size=config.d_model,
        heads=getattr(config, f"{stack}_attention_heads"),
        ffn=getattr(config, f"{stack}_ffn_dim"),
        hidden_act=config.activation_function,
        dropout=config.dropout > 0,
        attention_dropout=config.attention_dropout > 0,
    )


def transformer_memory(config: HfTransformerConfig, setup: Setup) -> Memory:
    """Memory of a translator. Training: what the layers keep, and of the logits what the loss keeps, their logarithms
    in fp32, 4 B T V bytes, beside the logits and the gradient that the backward pass starts with. Inference:
    generation to `target_tokens`, with its cache; the source is read at once."""
    parts = transformer_parts(config, setup.batch_size, setup.source_tokens, setup.target_tokens)
    parameters = sum(part.parameters for part in parts) * setup.parameter_bytes
    layers = {stack: _text_layer(config, setup, stack) for stack in ("encoder", "decoder")}
    rows = setup.batch_size * setup.target_tokens
    heads = max(config.encoder_attention_heads, config.decoder_attention_heads)
    longest = max(setup.source_tokens, setup.target_tokens)
    matrix = attention_matrix_bytes(setup.batch_size, heads, longest, longest, setup.compute_bytes)
    matrix *= setup.attn_implementation == "eager"
    if not setup.training:
        cache = cache_bytes(config, setup.batch_size, setup.source_tokens, setup.target_tokens, setup.parameter_bytes)
        logits = setup.batch_size * config.vocab_size * setup.compute_bytes
        return Memory(parameters, 0, 0, cache, max(layers["encoder"].working(setup), 2 * logits), matrix)
    counts = {stack: getattr(config, f"{stack}_layers") for stack in layers}
    kept = _kept_in_layers(setup, {layers[stack]: counts[stack] for stack in layers})
    logits = rows * config.vocab_size
    ends = logits * (4 + setup.compute_bytes) + rows * config.d_model * setup.compute_bytes
    sources = setup.batch_size * setup.source_tokens
    # The encoder's output and its gradient, and the masks of the embeddings' dropout.
    kept += (2 * sources + (sources + rows) * (config.dropout > 0)) * config.d_model * setup.parameter_bytes
    working = max(logits * 4, max(layer.working(setup) for layer in layers.values()) - ends)
    return whole_memory(setup, parameters, kept + ends, working, matrix, sum(counts.values()))


def _kept_in_layers(setup: Setup, layers: dict[_Layer, int]) -> int:
    """What layers keep, or with gradient checkpointing their inputs and the most that one of them keeps."""
    if not setup.gradient_checkpointing:
        return sum(count * layer.saved(setup) for layer, count in layers.items())
    inputs = sum(count * layer.rows * layer.size for layer, count in layers.items()) * setup.parameter_bytes
    return inputs + max(layer.saved(setup) for layer, count in layers.items() if count)


def detr_memory(config: HfDetrConfig, setup: Setup) -> Memory:
    """Memory of a detector: that of the backbone, of the layers above, and of the projected feature maps. What the
    matching takes is not in it."""
    backbone, training = backbone_of(config), setup.training
    patches = setup.batch_size * num_patches(backbone)
    common = {
        "batch_size": setup.batch_size,
        "size": config.d_model,
        "hidden_act": config.activation_function,
        "dropout": config.dropout > 0,
        "attention_dropout": config.attention_dropout > 0,
        "positions": True,
    }
    queries = setup.batch_size * num_queries(config, training)
    options: dict[str, Any] = {"heads": config.encoder_attention_heads, "ffn": config.encoder_ffn_dim, **common}
    encoder = _Layer(rows=patches, encoder_rows=0, **options)
    options = {"heads": config.decoder_attention_heads, "ffn": config.decoder_ffn_dim, **common}
    decoder = _Layer(rows=queries, encoder_rows=patches, bias=config.box_relative_bias, **options)
    parts = detr_parts(config, setup.batch_size, training)
    parameters = sum(part.parameters for part in parts) * setup.parameter_bytes
    maps = len(backbone.out_features or ())
    mixed = patches * config.d_model * setup.compute_bytes * (maps + 2)
    maps_bytes = maps * patches * backbone.hidden_size * setup.parameter_bytes
    heads, tokens = backbone.num_attention_heads, num_patches(backbone) + backbone.num_layer_prefix_tokens
    matrix = attention_matrix_bytes(setup.batch_size, heads, tokens, tokens, setup.compute_bytes)
    matrix *= setup.attn_implementation == "eager"
    working = vit_working_bytes(backbone, setup)
    if not training:
        return Memory(parameters, 0, 0, 0, max(working + maps_bytes, mixed + decoder.working(setup)), matrix)
    kept = saved_bytes(backbone, setup) + maps_bytes + mixed
    kept += _kept_in_layers(setup, {encoder: config.encoder_layers, decoder: config.decoder_layers})
    if setup.gradient_checkpointing:  # one layer at a time, of both
        kept -= min(
            decoder.saved(setup), max(layer_saved_bytes(backbone, setup, *of) for of in tokens_by_layer(backbone))
        )
    if config.two_stage:  # states of the tokens, before and after their norm, and of the box head
        kept += 5 * patches * config.d_model * setup.compute_bytes
    layers = backbone.num_hidden_layers + config.encoder_layers + config.decoder_layers
    return whole_memory(setup, parameters, kept, max(working, decoder.working(setup)), matrix, layers)
