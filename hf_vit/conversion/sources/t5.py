"""T5 of transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, fused, reshaped, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.text_rules import is_same
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig
from hf_vit.models.modeling_hf_transformer import HfTransformerForConditionalGeneration

_ACTIVATIONS = {"relu": "relu", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}
_TOKENS = ("pad_token_id", "eos_token_id")


def _start_of(peer: Any) -> int:
    """The token before a text: T5 takes padding, and not every configuration says so."""
    known = (getattr(each, "decoder_start_token_id", None) for each in (peer.config, peer.generation_config))
    return next((token for token in known if token is not None), peer.config.pad_token_id)


class T5(Source):
    """T5, whose scores are not scaled and whose tied output is: what it leaves out or adds goes into the weights."""

    library = "transformers"
    ours = HfTransformerConfig
    peers = ("T5ForConditionalGeneration",)
    ignored = (r"^(encoder|decoder)\.embed_tokens\.weight$",)  # other names of `shared.weight`
    expressed = frozenset({"encoder_vocab_size", "bos_token_id"})

    def config(self, peer: Peer) -> HfTransformerConfig:
        their = peer.config
        if their.d_kv * their.num_heads != their.d_model:
            raise ValueError(
                f"d_kv * num_heads must equal d_model ({their.d_model}), got {their.d_kv} * {their.num_heads}"
            )
        if their.feed_forward_proj not in _ACTIVATIONS:
            raise ValueError(
                f"feed_forward_proj must be one of {', '.join(_ACTIVATIONS)}, got {their.feed_forward_proj!r}"
            )
        return HfTransformerConfig(
            vocab_size=their.vocab_size,
            d_model=their.d_model,
            encoder_layers=their.num_layers,
            decoder_layers=their.num_decoder_layers,
            **{f"{stack}_attention_heads": their.num_heads for stack in ("encoder", "decoder")},
            **{f"{stack}_ffn_dim": their.d_ff for stack in ("encoder", "decoder")},
            activation_function=_ACTIVATIONS[their.feed_forward_proj],
            position_embedding="relative",
            relative_attention_num_buckets=their.relative_attention_num_buckets,
            relative_attention_max_distance=their.relative_attention_max_distance,
            norm_position="pre",
            norm_type="rms_norm",
            layer_norm_eps=their.layer_norm_epsilon,
            use_bias=False,
            scale_embedding=False,
            tie_word_embeddings=is_same(peer.lm_head.weight, peer.shared.weight),
            **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), their.dropout_rate),
            **{name: getattr(their, name) for name in _TOKENS},
            decoder_start_token_id=_start_of(peer),
            bos_token_id=None,
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
        if config.activation_function not in activations:
            raise ValueError(
                f"activation_function must be one of {', '.join(activations)}, got {config.activation_function!r}"
            )
        their = transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_model // config.encoder_attention_heads,
            d_ff=config.encoder_ffn_dim,
            num_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.encoder_attention_heads,
            relative_attention_num_buckets=config.relative_attention_num_buckets,
            relative_attention_max_distance=config.relative_attention_max_distance,
            dropout_rate=config.dropout,
            layer_norm_epsilon=config.layer_norm_eps,
            feed_forward_proj=activations[config.activation_function],
            **{name: getattr(config, name) for name in (*_TOKENS, "decoder_start_token_id", "tie_word_embeddings")},
        )
        their.scale_decoder_outputs = config.tie_word_embeddings  # as T5 does
        return transformers.T5ForConditionalGeneration(their)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfTransformerForConditionalGeneration

    def rules(self, config: HfTransformerConfig, peer: Peer) -> list[Rule]:
        output_scale = config.d_model**-0.5 if peer.config.scale_decoder_outputs else 1.0
        return [
            Rule(
                ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
                ("shared.weight",),
                lambda tensors: [tensors[0], tensors[0]],
                lambda tensors: [tensors[0]],
            ),
            same("lm_head.weight", "lm_head.weight"),
            *self._stack_rules(config, "encoder", 1.0),
            *self._stack_rules(config, "decoder", output_scale),
        ]

    @staticmethod
    def _stack_rules(config: HfTransformerConfig, stack: str, output_scale: float) -> list[Rule]:
        ours, theirs = f"model.{stack}.layers.*", f"{stack}.block.*.layer"
        scale = (config.d_model // config.encoder_attention_heads) ** 0.5
        mlp = "1" if stack == "encoder" else "2"
        rules = [
            same(
                f"model.{stack}.attention_position.bias.weight",
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            Rule(
                (f"{ours}.attention.qkv_proj.weight",),
                tuple(f"{theirs}.0.SelfAttention.{part}.weight" for part in "qkv"),
                lambda tensors: [torch.cat([tensors[0] * scale, *tensors[1:]])],
                lambda tensors: _unscaled(tensors[0].chunk(3), scale),
            ),
            same(f"{ours}.attention.out_proj.weight", f"{theirs}.0.SelfAttention.o.weight"),
            same(f"{ours}.attention_norm.weight", f"{theirs}.0.layer_norm.weight"),
            same(f"{ours}.mlp_norm.weight", f"{theirs}.{mlp}.layer_norm.weight"),
            same(f"{ours}.mlp.fc2.weight", f"{theirs}.{mlp}.DenseReluDense.wo.weight"),
            reshaped(
                f"model.{stack}.norm.weight",
                f"{stack}.final_layer_norm.weight",
                lambda weight: weight * output_scale,
                lambda weight: weight / output_scale,
            ),
        ]
        parts = [f"{theirs}.{mlp}.DenseReluDense.{name}.weight" for name in ("wi_0", "wi_1")]
        if config.activation_function == "relu":
            rules.append(same(f"{ours}.mlp.fc1.weight", f"{theirs}.{mlp}.DenseReluDense.wi.weight"))
        else:
            rules.append(fused(f"{ours}.mlp.fc1.weight", *parts))
        if stack == "decoder":
            rules += [
                reshaped(
                    f"{ours}.cross_attention.q_proj.weight",
                    f"{theirs}.1.EncDecAttention.q.weight",
                    lambda weight: weight * scale,
                    lambda weight: weight / scale,
                ),
                fused(
                    f"{ours}.cross_attention.kv_proj.weight",
                    *(f"{theirs}.1.EncDecAttention.{part}.weight" for part in "kv"),
                ),
                same(f"{ours}.cross_attention.out_proj.weight", f"{theirs}.1.EncDecAttention.o.weight"),
                same(f"{ours}.cross_attention_norm.weight", f"{theirs}.1.layer_norm.weight"),
            ]
        return rules


def _unscaled(parts: tuple[torch.Tensor, ...], scale: float) -> list[torch.Tensor]:
    query, *others = parts
    return [query / scale, *(part.clone() for part in others)]


SOURCES = [T5()]
