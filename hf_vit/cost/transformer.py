"""Cost of the encoder-decoder Transformer, in closed form.

Letters: B batch, S source tokens, T target tokens, D width, M width of an MLP, H heads, K head size, L layers of a
stack, V tokens of the vocabulary.
"""

from __future__ import annotations

from hf_vit.cost.parts import Part, linear_parameters, mlp_macs, mlp_parameters, norm_parameters, part
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig


def transformer_parts(
    config: HfTransformerConfig, batch_size: int = 1, source_tokens: int = 1, target_tokens: int = 1
) -> list[Part]:
    """Parts of a translator that reads `source_tokens` and whose decoder reads `target_tokens`.

    | Part | Parameters | Multiply-accumulates |
    |---|---|---|
    | embeddings and positions | V D once, or for each stack, and the tables of the scheme | 0 |
    | encoder attention | L (4 D^2 + 4 D) | B L (4 S D^2 + 2 S^2 D) |
    | encoder MLP | L (2 D M + M + D), gated: L (3 D M + 2 M + D) | B L S 2 D M, gated 3 D M |
    | decoder attention | L (4 D^2 + 4 D) | B L (4 T D^2 + 2 T^2 D) |
    | cross-attention | L (4 D^2 + 4 D) | B L (2 T D^2 + 2 S D^2 + 2 T S D) |
    | decoder MLP | as the encoder's | B L T 2 D M |
    | norms | 2 D a norm (RMS: D); queries and keys: 4 K an attention | 0 |
    | head | 0 if tied, else D V; a bias V | B T D V |

    With `relative_xl` a self-attention has D^2 + 2 D more for distances, of which there are R, 2 S - 1 in the encoder
    and T in the decoder, and takes R D^2, whatever the batch, and B T R D more.
    """
    size, rows = config.d_model, batch_size
    bias, cross_layers = config.use_bias, config.decoder_layers
    parts = [part("embeddings and positions", _embedding_parameters(config))]
    for stack, tokens, distances in (
        ("encoder", source_tokens, 2 * source_tokens - 1),
        ("decoder", target_tokens, target_tokens),
    ):
        layers, ffn = getattr(config, f"{stack}_layers"), getattr(config, f"{stack}_ffn_dim")
        parameters = linear_parameters(size, 3 * size, bias) + linear_parameters(size, size, bias)
        macs = rows * (4 * tokens * size**2 + 2 * tokens**2 * size)
        once = 0
        if config.position_embedding == "relative_xl":
            parameters += size**2 + 2 * size
            once = distances * size**2  # of encodings without a gradient
            macs += once + rows * tokens * distances * size
        without_gradient, again = layers * once, layers * macs
        parts.append(part(f"{stack} attention", layers * parameters, layers * macs, again, without_gradient))
        if stack == "decoder":
            parameters = 2 * linear_parameters(size, size, bias) + linear_parameters(size, 2 * size, bias)
            macs = rows * (2 * (target_tokens + source_tokens) * size**2 + 2 * target_tokens * source_tokens * size)
            parts.append(part("cross-attention", cross_layers * parameters, cross_layers * macs, cross_layers * macs))
        parameters = mlp_parameters(size, ffn, config.activation_function, bias)
        macs = mlp_macs(rows * tokens, size, ffn, config.activation_function)
        again = layers * macs - _layers_that_stop_early(config, layers) * rows * tokens * size * ffn
        parts.append(part(f"{stack} MLP", layers * parameters, layers * macs, again))
    parts.append(part("norms", _norm_parameters(config)))
    head = (0 if config.tie_word_embeddings else size * config.vocab_size) + config.lm_head_bias * config.vocab_size
    parts.append(part("head", head, rows * target_tokens * size * config.vocab_size))
    return parts


def _layers_that_stop_early(config: HfTransformerConfig, layers: int) -> int:
    """Layers whose MLP's second map gradient checkpointing does not compute again, since nothing keeps its output."""
    if config.norm_position == "post" or config.dropout:
        return 0
    return min(1, layers) if config.drop_path_rate else layers


def _embedding_parameters(config: HfTransformerConfig) -> int:
    """Tables of tokens, and for each stack `learned`: a row a position, `relative`: H a bucket."""
    size, both = config.d_model, config.share_encoder_decoder_embeddings
    tokens = config.vocab_size + (0 if both else config.encoder_vocab_size or config.vocab_size)
    heads = config.encoder_attention_heads + config.decoder_attention_heads
    tables = {
        "learned": 2 * (config.max_position_embeddings + config.position_offset) * size,
        "relative": config.relative_attention_num_buckets * heads,
    }
    return tokens * size + tables.get(config.position_embedding, 0)


def _norm_parameters(config: HfTransformerConfig) -> int:
    """Two norms an encoder layer, three a decoder layer, those of queries and keys, of the embeddings and, with
    `norm_position="pre"`, at the end of both stacks."""
    norms = 2 * config.encoder_layers + 3 * config.decoder_layers
    norms += 2 * config.embedding_norm + 2 * (config.norm_position == "pre")
    total = norms * norm_parameters(config.norm_type, config.d_model)
    if config.qk_norm:  # layer norms whatever the others are
        total += 4 * config.encoder_layers * (config.d_model // config.encoder_attention_heads)
        total += 8 * config.decoder_layers * (config.d_model // config.decoder_attention_heads)
    return total


def cache_bytes(
    config: HfTransformerConfig, batch_size: int, source_tokens: int, target_tokens: int, bytes_per_number: int = 4
) -> int:
    """Memory of the keys and values that generation keeps, of the target's tokens and of the source's: 2 L B (T + S) D
    numbers. With beams the batch counts them."""
    tokens = target_tokens + source_tokens
    return 2 * config.decoder_layers * batch_size * tokens * config.d_model * bytes_per_number


def generated_token_macs(config: HfTransformerConfig, source_tokens: int, target_tokens: int) -> int:
    """Multiply-accumulates of the next token of one text, with keys and values of the source and of the tokens before
    in the cache; T counts this token too.

    L (4 D^2 + 2 T D + 2 D^2 + 2 S D + 2 D M) + D V; with `relative_xl` L (T D^2 + T D) more.
    """
    size = config.d_model
    layer = 6 * size**2 + 2 * (target_tokens + source_tokens) * size
    layer += mlp_macs(1, size, config.decoder_ffn_dim, config.activation_function)
    if config.position_embedding == "relative_xl":
        layer += target_tokens * (size**2 + size)
    return config.decoder_layers * layer + size * config.vocab_size
