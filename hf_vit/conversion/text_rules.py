"""Rules and fields that the sources of encoder-decoders share."""

from __future__ import annotations

from typing import Any

import torch
from transformers.activations import ACT2FN

from hf_vit.conversion.rules import Peer, Rule, fused, same

# Of one name and meaning in the configurations of Marian, BART, mBART and ours.
FIELDS = (
    *("d_model", "activation_function", "max_position_embeddings"),
    *(f"{stack}_{name}" for stack in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")),
    *("scale_embedding", "dropout", "attention_dropout", "activation_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
)


def fields_of(config: Any) -> dict[str, Any]:
    """The fields that both configurations have, of either.

    Raises:
        ValueError: the peers' MLPs have no such activation.
    """
    if config.activation_function not in ACT2FN:
        raise ValueError(f"activation_function must be one of {', '.join(ACT2FN)}, got {config.activation_function!r}")
    return {name: getattr(config, name) for name in FIELDS}


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two weights are tied, or as good as tied: on the meta device none is but to itself."""
    if one is other or one.is_meta or other.is_meta:
        return one is other
    return torch.equal(one, other)


def is_tied(model: Peer) -> dict[str, Any]:
    """Which embeddings of an encoder-decoder of transformers are one in fact: several switches of it decide that
    together."""
    target = model.model.decoder.embed_tokens.weight
    return {
        "share_encoder_decoder_embeddings": is_same(model.model.encoder.embed_tokens.weight, target),
        "tie_word_embeddings": is_same(model.lm_head.weight, target),
    }


def layer_rules(stack: str) -> list[Rule]:
    """Rules for the layers of Marian's, BART's or mBART's encoder or decoder."""
    layer, cross = f"model.{stack}.layers.*", f"model.{stack}.layers.*.encoder_attn"
    return [
        fused(f"{layer}.attention.qkv_proj.*", *(f"{layer}.self_attn.{part}_proj.*" for part in "qkv")),
        same(f"{layer}.attention.out_proj.*", f"{layer}.self_attn.out_proj.*"),
        same(f"{layer}.attention_norm.*", f"{layer}.self_attn_layer_norm.*"),
        same(f"{layer}.cross_attention.q_proj.*", f"{cross}.q_proj.*"),
        fused(f"{layer}.cross_attention.kv_proj.*", f"{cross}.k_proj.*", f"{cross}.v_proj.*"),
        same(f"{layer}.cross_attention.out_proj.*", f"{cross}.out_proj.*"),
        same(f"{layer}.cross_attention_norm.*", f"{cross}_layer_norm.*"),
        same(f"{layer}.mlp.fc1.*", f"{layer}.fc1.*"),
        same(f"{layer}.mlp.fc2.*", f"{layer}.fc2.*"),
        same(f"{layer}.mlp_norm.*", f"{layer}.final_layer_norm.*"),
    ]


def output_rules(has_bias: bool, vocab_size: int) -> list[Rule]:
    """Rules for the output and its bias, which the peer always has, in a buffer of shape (1, vocab_size)."""
    if has_bias:
        bias = Rule(
            ("lm_head.bias",),
            ("final_logits_bias",),
            lambda tensors: [tensors[0][0].clone()],
            lambda tensors: [tensors[0][None]],
        )
    else:
        bias = Rule((), ("final_logits_bias",), lambda tensors: [], lambda tensors: [torch.zeros(1, vocab_size)])
    return [same("lm_head.weight", "lm_head.weight"), bias]


__all__ = ["FIELDS", "fields_of", "is_same", "is_tied", "layer_rules", "output_rules"]
