"""Parameters and multiply-accumulates of the Vision Transformer, in closed form.

Letters: B batch, T tokens in the layers, N patches, D hidden size, M width of the MLP, H heads, K head size, L layers,
C classes.
"""

from __future__ import annotations

import math

from hf_vit.cost.parts import Part, linear_parameters, mlp_macs, mlp_parameters, norm_parameters, part
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.token_schedule import patches_after_layers, token_reduction
from hf_vit.models.vit_checks import RELATIVE


def num_patches(config: HfViTConfig) -> int:
    """Patches of an image of `config.image_size`: N, rows times columns."""
    return math.prod(config.grid_size)


def num_class_tokens(config: HfViTConfig) -> int:
    """Tokens of the class-attention layers that change there: the class and the distillation token."""
    return config.num_prefix_tokens - config.num_layer_prefix_tokens


def tokens_in_layers(config: HfViTConfig, training: bool = False) -> int:
    """Tokens that go into the first self-attention layer, and through all unless they are made fewer: T = N + prefix
    tokens. In training those that
    `patch_dropout_prob` keeps: max(1, round(N (1 - p))) of the N patches."""
    patches = num_patches(config)
    if training and config.patch_dropout_prob:
        patches = max(1, round(patches * (1 - config.patch_dropout_prob)))
    return patches + config.num_layer_prefix_tokens


def tokens_by_layer(config: HfViTConfig, training: bool = False) -> list[tuple[int, int]]:
    """Tokens in the attention and in the MLP of each layer, between which they are merged or pruned."""
    first, prefix = tokens_in_layers(config, training), config.num_layer_prefix_tokens
    after = [patches + prefix for patches in patches_after_layers(config, first - prefix)]
    return list(zip([first, *after], after))


def vit_parts(config: HfViTConfig, batch_size: int = 1, training: bool = False) -> list[Part]:
    """Parts of an image classifier.

    | Part | Parameters | Multiply-accumulates |
    |---|---|---|
    | patch embedding | C p^2 D + D (hybrid, lvvit: a stem before it) | B N C p^2 D |
    | tokens and positions | D a prefix token, the tables of the scheme | 0 |
    | QKV | L (3 D^2 + 3 D) | B L T 3 D^2 |
    | scores | 0 | B L T^2 D |
    | values | 0 | B L T^2 D |
    | projection | L (D^2 + D) | B L T D^2 |
    | the four, heads with K and K' channels of their own | L (D H (2 K + 2 K') + H (2 K + K') + D) | \
B L (T D H (2 K + 2 K') + T^2 H (K + K')) |
    | head mixing (talking heads) | L 2 (H^2 + H) | B L T^2 2 H^2 |
    | MLP | L (2 D M + M + D), gated: L (3 D M + 2 M + D) | B L T 2 D M, gated 3 D M |
    | class attention, P class tokens | 4 D^2 + 4 D and an MLP a layer | \
B (2 P D^2 + 2 (P + T) D^2 + 2 P (P + T) D + an MLP of P tokens) a layer |
    | norms and layer scale | 2 D a norm (RMS: D), D a scale | 0 |
    | pooling | weighted: D + 1; attention: 4 D^2 + 5 D, a norm, an MLP | \
weighted: 2 B N D; attention: D^2 + B (2 N D^2 + 2 N D + D^2 + an MLP of one token) |
    | head | D C + C, twice with a distillation token, D a pooling | B D C |
    | token labeling head | D C + C | B N D C |

    Args:
        config: the configuration; images are of its `image_size`.
        batch_size: images.
        training: with the tokens that training keeps (`patch_dropout_prob`).
    """
    tokens = tokens_by_layer(config, training)
    last = tokens[-1][1]
    parts = [
        _patch_embedding(config, batch_size),
        part("tokens and positions", _token_parameters(config) + _position_parameters(config)),
        *_layers(config, batch_size, tokens),
        *_class_layers(config, batch_size, last),
        part("norms", _norm_parameters(config)),
        *_pooling(config, batch_size, last - config.num_layer_prefix_tokens),
        _head(config, batch_size),
        _token_labeling_head(config, batch_size, tokens[0][0] - config.num_layer_prefix_tokens),
    ]
    return [each for each in parts if each.parameters or each.macs]


def _patch_embedding(config: HfViTConfig, batch_size: int) -> Part:
    height, width = config.patch_shape
    if config.patch_embedding == "conv":
        size = config.num_channels * height * width
        macs = batch_size * num_patches(config) * size * config.hidden_size
        parameters = linear_parameters(size, config.hidden_size, config.patch_bias)
        return part("patch embedding", parameters, macs, without_gradient=macs)
    stem = _stem if config.patch_embedding == "hybrid" else _lvvit_stem
    parameters, macs, first = stem(config, batch_size)
    return part("patch embedding", parameters, macs, without_gradient=first)


def _stem(config: HfViTConfig, batch_size: int) -> tuple[int, int, int]:
    """Parameters and multiply-accumulates of the hybrid stem and its linear map, and those of its first convolution.

    A convolution of 3 x 3 has 9 c c' weights and 2 c' of its group norm, and takes 9 c c' multiply-accumulates a pixel
    of its output, of which each halving leaves a quarter; a residual block has two of c' to c' channels.
    """
    smallest = math.gcd(*config.patch_shape)
    halvings = (smallest & -smallest).bit_length() - 1
    layers = max(halvings, 1)
    widths = [max(config.hidden_size // 2 ** (layers - i), 8) for i in range(layers)]
    pixels = batch_size * num_patches(config) * math.prod(config.patch_shape)
    parameters = macs = first = 0
    for before, after in zip([config.num_channels, *widths], widths):
        pixels //= 4 if halvings else 1
        weights = 9 * before * after
        first = first or pixels * weights
        blocks = config.num_stem_blocks * 2
        parameters += weights + 2 * after + blocks * (9 * after * after + 2 * after)
        macs += pixels * (weights + blocks * 9 * after * after)
    size = widths[-1] * math.prod(config.patch_shape) // 4**halvings
    parameters += linear_parameters(size, config.hidden_size, config.patch_bias)
    return parameters, macs + batch_size * num_patches(config) * size * config.hidden_size, first


def _lvvit_stem(config: HfViTConfig, batch_size: int) -> tuple[int, int, int]:
    """The same of LV-ViT's: 49 c 64 weights, then twice 9 64 64, and 2 64 of each group norm, on a quarter of the
    pixels."""
    patches, patch_pixels = batch_size * num_patches(config), math.prod(config.patch_shape) // 4
    weights = 49 * config.num_channels * 64, 9 * 64 * 64, 9 * 64 * 64
    pixels, size = patches * patch_pixels, 64 * patch_pixels
    parameters = sum(weights) + 3 * 2 * 64 + linear_parameters(size, config.hidden_size, config.patch_bias)
    return parameters, pixels * sum(weights) + patches * size * config.hidden_size, pixels * weights[0]


def _token_parameters(config: HfViTConfig) -> int:
    return config.num_prefix_tokens * config.hidden_size


def _position_parameters(config: HfViTConfig) -> int:
    """`learned`: (N + prefix) D; `learned_2d`: (rows + columns + prefix) D; relative biases: H a pair of offsets,
    (2 rows - 1) (2 columns - 1) H, and 3 H for prefix tokens; `rope_mixed`: L 2 H K / 2; closed forms: none."""
    rows, columns = config.grid_size
    size, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    bias = ((2 * rows - 1) * (2 * columns - 1) + 3 * (config.num_prefix_positions("relative_bias") > 0)) * heads
    prefix = config.num_prefix_positions(config.absolute_position) * size
    tables = {
        "learned": rows * columns * size + prefix,
        "learned_2d": (rows + columns) * size + prefix,
        "relative_bias": bias,
        "relative_bias_per_layer": layers * bias,
        "rope_mixed": layers * 2 * heads * (config.head_dims[0] // 2),
    }
    return sum(tables.get(name, 0) for name in config.position_embeddings)


def _layers(config: HfViTConfig, batch_size: int, tokens: list[tuple[int, int]]) -> list[Part]:
    size, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    rows = batch_size * sum(in_attention for in_attention, _ in tokens)
    pairs = batch_size * sum(in_attention**2 for in_attention, _ in tokens)
    in_mlps = [batch_size * in_mlp for _, in_mlp in tokens]
    qk, v = (heads * width for width in config.head_dims)
    biases = ((2 if config.key_bias else 1) * qk + v) * config.qkv_bias
    width = 2 * qk + v
    mixing = 2 * heads**2 * config.talking_heads
    mlp = mlp_parameters(size, config.intermediate_size, config.hidden_act, config.mlp_bias)
    mlp_all = mlp_macs(sum(in_mlps), size, config.intermediate_size, config.hidden_act)
    mlp_again = mlp_all - sum(in_mlps[: _layers_that_stop_early(config)]) * size * config.intermediate_size
    return [
        part("QKV", layers * (width * size + biases), rows * width * size, rows * width * size),
        part("scores", 0, pairs * qk, pairs * qk),
        part("head mixing", layers * (mixing + 2 * heads * config.talking_heads), pairs * mixing, pairs * mixing),
        part("values", 0, pairs * v, pairs * v),
        part("projection", layers * linear_parameters(v, size, config.proj_bias), rows * v * size, rows * v * size),
        part("MLP", layers * mlp, mlp_all, mlp_again),
        _reduction(config, batch_size, tokens),
    ]


def _reduction(config: HfViTConfig, batch_size: int, tokens: list[tuple[int, int]]) -> Part:
    """Matmuls that find which tokens go, and fuse those that do.

    Merging, n patches in a layer that merges: the similarities ceil(n / 2) floor(n / 2) K, without a gradient.
    Pruning, of T tokens R: the class token's scores T D, the sum R D. A relative bias of S tokens is averaged in every
    layer: H (T S^2 + T^2 S), with a gradient for the bias alone.
    """
    size, prefix, whole = config.hidden_size, config.num_layer_prefix_tokens, tokens[0][0]
    free = with_gradient = 0
    for before, after in tokens:
        patches, gone = before - prefix, before - after
        if gone and config.token_merging_r:
            free += (patches + 1) // 2 * (patches // 2) * config.head_dims[0]
        elif gone:
            with_gradient += before * config.num_attention_heads * config.head_dims[0] + (gone + 1) * size
    averaged = 0
    if token_reduction(config):
        biases = len(set(config.position_embeddings) & set(RELATIVE))
        pairs = sum(before * whole**2 + before**2 * whole for before, _ in tokens)
        averaged = min(biases, 1) * config.num_attention_heads * pairs
    all_macs = batch_size * (free + with_gradient + averaged)
    backward = batch_size * (2 * with_gradient + averaged)
    return Part("token reduction", 0, all_macs, backward, all_macs)


def _layers_that_stop_early(config: HfViTConfig) -> int:
    """Layers in which checkpointing has all it needs before the MLP's second map, whose output nothing keeps: those
    without layer scale, dropout and drop path."""
    if config.layer_scale_init_value is not None or config.hidden_dropout_prob:
        return 0
    return 1 if config.drop_path_rate else config.num_hidden_layers  # the first layer drops no path


def _class_layers(config: HfViTConfig, batch_size: int, tokens: int) -> list[Part]:
    size, layers, own = config.hidden_size, config.num_class_layers, num_class_tokens(config)
    keys = own + tokens
    attention = 3 * linear_parameters(size, size, config.qkv_bias) + linear_parameters(size, size, config.proj_bias)
    attention_all = layers * batch_size * (2 * own * size**2 + 2 * keys * size**2 + 2 * own * keys * size)
    mlp = mlp_parameters(size, config.intermediate_size, config.hidden_act, config.mlp_bias)
    mlp_all = layers * batch_size * mlp_macs(own, size, config.intermediate_size, config.hidden_act)
    stops_early = config.layer_scale_init_value is None and not config.hidden_dropout_prob
    mlp_again = mlp_all - stops_early * layers * batch_size * own * size * config.intermediate_size
    return [
        part("class attention", layers * attention, attention_all, attention_all),
        part("class MLP", layers * mlp, mlp_all, mlp_again),
    ]


def _norm_parameters(config: HfViTConfig) -> int:
    """Two norms a layer, with those of queries and keys, of the heads' output and of the MLP's hidden layer, two
    layer scales, the norm of the embeddings and the final one."""
    size = config.hidden_size

    def norm(width: int) -> int:
        return norm_parameters(config.norm_type, width)

    layer = 2 * norm(size) + config.mlp_hidden_norm * norm(config.intermediate_size)
    layer += config.qk_norm * 2 * norm(config.head_dims[0])
    layer += 2 * size * (config.layer_scale_init_value is not None)
    total = layer * (config.num_hidden_layers + config.num_class_layers)
    values = config.num_attention_heads * config.head_dims[1]
    total += config.attention_output_norm * norm(values) * config.num_hidden_layers
    return total + norm(size) * (config.embedding_norm + (config.norm_position != "none"))


def _pooling(config: HfViTConfig, batch_size: int, patches: int) -> list[Part]:
    size, parameters, macs, without_gradient = config.hidden_size, 0, 0, 0
    if token_reduction(config) == "token_merging_r":  # means are sums weighed by size
        macs = without_gradient = batch_size * patches * size * len({"mean", "cls_mean"} & set(config.poolings))
    if "cls_mean" in config.poolings:
        parameters += config.learn_cls_mean_weight
    if "weighted" in config.poolings:
        parameters += linear_parameters(size, 1)
        macs += batch_size * 2 * patches * size
    if "attention" in config.poolings:
        parameters += size + 4 * linear_parameters(size, size) + norm_parameters(config.norm_type, size)
        parameters += mlp_parameters(size, config.intermediate_size, config.hidden_act)
        one_token = size**2 + mlp_macs(1, size, config.intermediate_size, config.hidden_act)
        # The query is learnt, so that it is projected once a batch.
        macs += size**2 + batch_size * (2 * patches * size**2 + 2 * patches * size + one_token)
    return [part("pooling", parameters, macs, without_gradient=without_gradient)]


def _head(config: HfViTConfig, batch_size: int) -> Part:
    widths = [config.pooled_size] + [config.hidden_size] * config.use_distillation_token
    classes = config.num_labels
    if config.pooling == "none" or not classes:
        return part("head", 0)
    return part("head", sum(linear_parameters(each, classes) for each in widths), batch_size * sum(widths) * classes)


def _token_labeling_head(config: HfViTConfig, batch_size: int, patches: int) -> Part:
    size, classes = config.hidden_size, config.num_labels
    if not config.use_token_labeling_head or config.pooling == "none" or not classes:
        return part("token labeling head", 0)
    return part("token labeling head", linear_parameters(size, classes), batch_size * patches * size * classes)
