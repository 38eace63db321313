"""Weights of transformers' encoder-decoders, brought into ours."""

import copy

import torch
from torch import nn

from hf_vit.conversion.vit import check_class, load_weights, renamed, with_fused_projections
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig
from hf_vit.models.modeling_hf_transformer import HfTransformerForConditionalGeneration

# Applied in turn to each name of the peer's state dict.
_MARIAN_NAMES = (
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".attention_norm."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attention_norm."),
    (r"\.(fc[12])\.", r".mlp.\1."),
    (r"\.final_layer_norm\.", ".mlp_norm."),
)
_MARIAN_FIELDS = (
    *("d_model", "activation_function", "max_position_embeddings"),
    *(f"{stack}_{name}" for stack in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")),
    *("scale_embedding", "dropout", "attention_dropout", "activation_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
)
_T5_NAMES = (
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".attention_position.bias."),
    (r"\.block\.", ".layers."),
    (r"\.layer\.0\.SelfAttention\.", ".attention."),
    (r"\.layer\.0\.layer_norm\.", ".attention_norm."),
    (r"\.layer\.1\.EncDecAttention\.", ".cross_attention."),
    (r"(decoder.*)\.layer\.1\.layer_norm\.", r"\1.cross_attention_norm."),
    (r"\.layer\.[12]\.DenseReluDense\.wi\.", ".mlp.fc1."),
    (r"\.layer\.[12]\.DenseReluDense\.wo\.", ".mlp.fc2."),
    (r"\.layer\.[12]\.DenseReluDense\.", ".mlp."),
    (r"\.layer\.[12]\.layer_norm\.", ".mlp_norm."),
    (r"attention\.([qkvo])\.", lambda match: f"attention.{'out' if match[1] == 'o' else match[1]}_proj."),
    (r"\.final_layer_norm\.", ".norm."),
)
_T5_ACTIVATIONS = {"relu": "relu", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}


def from_marian(model: nn.Module) -> HfTransformerForConditionalGeneration:
    """Our model with the weights of transformers' `MarianMTModel`, in eval mode, and its generation configuration.

    Raises:
        ValueError: if the model is of another class.
    """
    check_class(model, "MarianMTModel")
    target = model.model.decoder.embed_tokens.weight
    config = HfTransformerConfig(
        **{name: getattr(model.config, name) for name in _MARIAN_FIELDS},
        vocab_size=model.config.decoder_vocab_size,
        encoder_vocab_size=model.config.vocab_size,
        lm_head_bias=True,
        # What is tied in fact: two switches of the peer decide it together.
        share_encoder_decoder_embeddings=torch.equal(model.model.encoder.embed_tokens.weight, target),
        tie_word_embeddings=torch.equal(model.lm_head.weight, target),
    )
    weights = renamed(model.state_dict(), _MARIAN_NAMES)
    weights["lm_head.bias"] = weights.pop("final_logits_bias")[0]
    for name in [name for name in weights if name == "model.shared.weight" or "embed_positions" in name]:
        del weights[name]
    return _with_weights(config, weights, model)


def from_t5(model: nn.Module) -> HfTransformerForConditionalGeneration:
    """Our model with the weights of transformers' `T5ForConditionalGeneration`, in eval mode, and its generation
    configuration. What T5 leaves out or adds (no scaling of the scores, scaled output) goes into the weights.

    Raises:
        ValueError: if the model is of another class, its heads do not add up to its width, or its activation is one
            that ours lacks.
    """
    check_class(model, "T5ForConditionalGeneration")
    peer = model.config
    if peer.d_kv * peer.num_heads != peer.d_model:
        raise ValueError(f"d_kv * num_heads must equal d_model ({peer.d_model}), got {peer.d_kv} * {peer.num_heads}")
    if peer.feed_forward_proj not in _T5_ACTIVATIONS:
        raise ValueError(
            f"feed_forward_proj must be one of {', '.join(_T5_ACTIVATIONS)}, got {peer.feed_forward_proj!r}"
        )
    config = HfTransformerConfig(
        vocab_size=peer.vocab_size,
        d_model=peer.d_model,
        encoder_layers=peer.num_layers,
        decoder_layers=peer.num_decoder_layers,
        **{f"{stack}_attention_heads": peer.num_heads for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": peer.d_ff for stack in ("encoder", "decoder")},
        activation_function=_T5_ACTIVATIONS[peer.feed_forward_proj],
        position_embedding="relative",
        relative_attention_num_buckets=peer.relative_attention_num_buckets,
        relative_attention_max_distance=peer.relative_attention_max_distance,
        norm_position="pre",
        norm_type="rms_norm",
        layer_norm_eps=peer.layer_norm_epsilon,
        use_bias=False,
        scale_embedding=False,
        tie_word_embeddings=torch.equal(model.lm_head.weight, model.shared.weight),
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), peer.dropout_rate),
        **{name: getattr(peer, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")},
        bos_token_id=None,
    )
    weights = renamed(model.state_dict(), _T5_NAMES)
    del weights["shared.weight"]
    for name in [name for name in weights if name.endswith("attention.q_proj.weight")]:
        weights[name] = weights[name] * peer.d_kv**0.5
    for name in [name for name in weights if name.endswith("mlp.wi_0.weight")]:
        parts = [weights.pop(name), weights.pop(name.replace("wi_0", "wi_1"))]
        weights[name.replace("wi_0", "fc1")] = torch.cat(parts)
    if peer.scale_decoder_outputs:
        weights["model.decoder.norm.weight"] = weights["model.decoder.norm.weight"] * peer.d_model**-0.5
    return _with_weights(config, weights, model)


def _with_weights(
    config: HfTransformerConfig, weights: dict[str, torch.Tensor], peer: nn.Module
) -> HfTransformerForConditionalGeneration:
    model = HfTransformerForConditionalGeneration(config).eval()
    load_weights(model, with_fused_projections(weights))
    model.generation_config = copy.deepcopy(peer.generation_config)
    return model


__all__ = ["from_marian", "from_t5"]
