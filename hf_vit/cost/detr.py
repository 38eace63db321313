"""Cost of the detection Transformer on a Vision Transformer of ours, in closed form.

Letters: B batch, N patches, Q queries, D width, M width of an MLP, H heads, K head size, L layers, C class logits.
"""

from __future__ import annotations

from typing import Any

from hf_vit.cost.parts import Part, linear_parameters, mlp_macs, mlp_parameters, norm_parameters, part
from hf_vit.cost.vit import num_patches, vit_parts
from hf_vit.models.configuration_hf_detr import HfDetrConfig
from hf_vit.models.configuration_hf_vit import HfViTConfig


def backbone_of(config: HfDetrConfig) -> HfViTConfig:
    """The configuration of the Vision Transformer below, which has no pooling and no head.

    Raises:
        ValueError: if the backbone is another model.
    """
    backbone: Any = config.backbone_config
    fields = backbone.to_dict()
    if fields.get("model_type") != HfViTConfig.model_type:
        raise ValueError(f"backbone_config must be of {HfViTConfig.model_type}, got {fields.get('model_type')!r}")
    without = {"pooling": "none", "patch_dropout_prob": 0.0, "use_token_labeling_head": False, "num_class_layers": 0}
    if fields.get("num_class_layers"):  # whose tokens the patches never see
        without |= {"use_class_token": False, "use_distillation_token": False}
    return HfViTConfig.from_dict({**fields, **without})


def num_queries(config: HfDetrConfig, training: bool = False) -> int:
    """Queries of the decoder: Q, no more than there are patches where they are chosen of them, in training times the
    groups."""
    queries = config.num_queries
    if config.two_stage:
        queries = min(queries, num_patches(backbone_of(config)))
    return queries * config.group_detr if training else queries


def detr_parts(config: HfDetrConfig, batch_size: int = 1, training: bool = False) -> list[Part]:
    """Parts of a detector; what the loss matches is not counted.

    | Part | Parameters | Multiply-accumulates |
    |---|---|---|
    | backbone | of the Vision Transformer, without a head | as many |
    | feature mix | a map: D' D + D + 1 | B N D' D a map |
    | encoder | L layers of self-attention and MLP | B L (7 N D^2 + 2 N^2 D + 2 N D M) |
    | queries | contents, boxes or positions; in two stages D^2, a box head, a class head | \
B N (3 D^2 + D C + 4 D) |
    | decoder attention | L (4 D^2 + 4 D) | B L (7 Q D^2 + 2 Q^2 D) |
    | cross-attention | L (4 D^2 + 4 D) | B L (2 Q D^2 + 4 N D^2 + 2 Q N D) |
    | decoder MLP | L (2 D M + M + D) | B L Q 2 D M |
    | boxes | the head 2 D^2 + 4 D, positions 2 D^2, a layer's bias by distances | \
B L (Q (4 D^2 + 4 D) + Q (rows + columns) (D / 2 + D / 4 H)) |
    | head | D C + C | B Q D C, in training for each layer |

    Queries and keys are made of tokens with positions and values of tokens without, by the same matmul each: 3 D^2
    twice, or in cross-attention 2 D^2 twice.
    """
    backbone, size = backbone_of(config), config.d_model
    patches, queries = batch_size * num_patches(backbone), batch_size * num_queries(config, training)
    of_backbone = [each for each in vit_parts(backbone, batch_size) if each.name not in ("pooling", "head")]
    parts = [
        *of_backbone,
        _feature_mix(config, backbone, patches),
        *_encoder(config, batch_size, patches),
        _queries(config, patches),
        *_decoder(config, batch_size, patches, queries),
        _boxes(config, backbone, queries),
        _norms(config),
    ]
    layers = config.decoder_layers if training else 1
    classes = config.num_class_outputs
    parts.append(part("head", linear_parameters(size, classes), layers * queries * size * classes))
    return [each for each in parts if each.parameters or each.macs]


def _feature_mix(config: HfDetrConfig, backbone: HfViTConfig, patches: int) -> Part:
    maps, channels = len(backbone.out_features or ()), backbone.hidden_size
    parameters = maps * (linear_parameters(channels, config.d_model) + 1)
    return part("feature mix", parameters, maps * patches * channels * config.d_model)


def _encoder(config: HfDetrConfig, batch_size: int, patches: int) -> list[Part]:
    layers, size, each = config.encoder_layers, config.d_model, patches // batch_size
    macs = layers * patches * (7 * size**2 + 2 * each * size)
    attention = linear_parameters(size, 3 * size, config.use_bias) + linear_parameters(size, size, config.use_bias)
    mlp = mlp_parameters(size, config.encoder_ffn_dim, config.activation_function, config.use_bias)
    mlp_all = layers * mlp_macs(patches, size, config.encoder_ffn_dim, config.activation_function)
    return [
        part("encoder attention", layers * attention, macs, macs),
        part("encoder MLP", layers * mlp, mlp_all, mlp_all),
    ]


def _queries(config: HfDetrConfig, patches: int) -> Part:
    size, classes, total = config.d_model, config.num_class_outputs, config.num_queries * config.group_detr
    parameters, macs = total * size, 0
    if config.has_reference_boxes and not config.two_stage:
        parameters += 4 * total
    if config.two_stage:
        parameters += linear_parameters(size, size) + linear_parameters(size, classes) + _box_head(size)
        macs = patches * (3 * size**2 + size * classes + 4 * size)
    return part("queries", parameters, macs)


def _box_head(size: int) -> int:
    return 2 * linear_parameters(size, size) + linear_parameters(size, 4)


def _decoder(config: HfDetrConfig, batch_size: int, patches: int, queries: int) -> list[Part]:
    layers, size, bias = config.decoder_layers, config.d_model, config.use_bias
    own = linear_parameters(size, 3 * size, bias) + linear_parameters(size, size, bias)
    own_macs = layers * queries * (7 * size**2 + 2 * queries // batch_size * size)
    cross = 2 * linear_parameters(size, size, bias) + linear_parameters(size, 2 * size, bias)
    cross_macs = layers * (2 * queries * size**2 + 4 * patches * size**2 + 2 * queries * patches // batch_size * size)
    mlp = mlp_parameters(size, config.decoder_ffn_dim, config.activation_function, bias)
    mlp_all = layers * mlp_macs(queries, size, config.decoder_ffn_dim, config.activation_function)
    return [
        part("decoder attention", layers * own, own_macs, own_macs),
        part("cross-attention", layers * cross, cross_macs, cross_macs),
        part("decoder MLP", layers * mlp, mlp_all, mlp_all),
    ]


def _boxes(config: HfDetrConfig, backbone: HfViTConfig, queries: int) -> Part:
    layers, size, heads = config.decoder_layers, config.d_model, config.decoder_attention_heads
    parameters, macs = _box_head(size), queries * (2 * size**2 + 4 * size)
    if config.has_reference_boxes:  # whose positions come from an MLP
        parameters += 2 * linear_parameters(size, size)
        macs += queries * 2 * size**2
    if config.box_relative_bias:
        hidden = size // 4
        parameters += layers * 2 * (linear_parameters(2, hidden) + linear_parameters(hidden, heads))
        macs += queries * sum(backbone.grid_size) * (2 * hidden + hidden * heads)
    return part("boxes", parameters, layers * macs)


def _norms(config: HfDetrConfig) -> Part:
    """Of the mix, two an encoder layer, three a decoder layer, the decoder's, the pre-norm encoder's and that of the
    tokens that are chosen; of queries and keys."""
    norms = 2 + 2 * config.encoder_layers + 3 * config.decoder_layers + config.two_stage
    norms += config.norm_position == "pre" and config.encoder_layers > 0
    total = norms * norm_parameters(config.norm_type, config.d_model)
    if config.qk_norm:
        total += 4 * config.encoder_layers * (config.d_model // config.encoder_attention_heads)
        total += 8 * config.decoder_layers * (config.d_model // config.decoder_attention_heads)
    return part("norms of encoder and decoder", total)
