"""Our Transformer as a model of CTranslate2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_vit.extras import extra
from hf_vit.models.position_encoding import sincos_table
from hf_vit.text.tokenization import Tokenizers

_ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_new": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "swish": "SWISH",
    "silu": "SWISH",
    "geglu": "GELU",
    "geglu_tanh": "GELUTanh",
    "swiglu": "SWISH",
}
_GATED = ("geglu", "geglu_tanh", "swiglu")
_POSITIONS = ("sinusoidal", "learned", "relative")
_LONGEST = 2048  # rows of the table of sines, which CTranslate2 wants whole


def write(model: Any, tokenizers: Tokenizers, folder: Path, dtype: str) -> None:
    """A folder that `ctranslate2.Translator` loads.

    Args:
        model: a translator of ours in eval mode.
        tokenizers: its tokenizers; CTranslate2 works on their tokens.
        folder: where to.
        dtype: of the weights, "float32", "float16", "bfloat16" or "int8".

    Raises:
        ValueError: CTranslate2 has no counterpart of the model; the message names the field.
    """
    with extra("export"):
        from ctranslate2.specs import transformer_spec
        from ctranslate2.specs.common_spec import Activation
    config = model.config
    _check(config)
    stacks = {}
    for name in ("encoder", "decoder"):
        spec_class = getattr(transformer_spec, f"Transformer{name.capitalize()}Spec")
        stack = getattr(model.model, name)
        spec = spec_class(
            len(stack.layers),
            getattr(config, f"{name}_attention_heads"),
            pre_norm=config.norm_position == "pre",
            activation=getattr(Activation, _ACTIVATIONS[config.activation_function]),
            layernorm_embedding=config.embedding_norm,
            relative_attention_bias=config.position_embedding == "relative",
            ffn_glu=config.activation_function in _GATED,
            rms_norm=config.norm_type == "rms_norm",
        )
        _fill_stack(spec, stack, config)
        stacks[name] = spec
    _fill(stacks["decoder"].projection, model.lm_head)
    spec = transformer_spec.TransformerSpec(stacks["encoder"], stacks["decoder"])
    source, target = tokenizers
    spec.register_source_vocabulary(_tokens(source, config.encoder_vocab_size or config.vocab_size))
    spec.register_target_vocabulary(_tokens(target, config.vocab_size))
    spec.config.unk_token = source.unk_token or source.pad_token
    spec.config.bos_token = target.convert_ids_to_tokens(config.decoder_start_token_id)
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.eos_token = target.eos_token
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(quantization=dtype)
    spec.save(str(folder))


def _check(config: Any) -> None:
    allowed = {
        "position_embedding": _POSITIONS,
        "activation_function": tuple(_ACTIVATIONS),
        "qk_norm": (False,),
    }
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            listed = ", ".join(map(str, values))
            raise ValueError(f"{name} must be one of {listed} for CTranslate2, got {getattr(config, name)!r}")
    if isinstance(config.eos_token_id, (list, tuple)):
        raise ValueError(f"eos_token_id must be one token for CTranslate2, got {config.eos_token_id}")


def _tokens(tokenizer: Any, size: int) -> list[str]:
    """The tokens by their ids; ids that the tokenizer lacks get names of their own."""
    found = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    tokens = [f"<unused{i}>" if token is None else token for i, token in enumerate(found)]
    return tokens + [f"<unused{i}>" for i in range(len(tokens), size)]


def _fill_stack(spec: Any, stack: Any, config: Any) -> None:
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = _array(stack.embed_tokens.weight)
    spec.scale_embeddings = float(stack.embed_scale) if stack.embed_scale != 1 else False
    if config.position_embedding == "sinusoidal":
        spec.position_encodings.encodings = _array(sincos_table(torch.arange(_LONGEST).float(), config.d_model))
    elif config.position_embedding == "learned":
        spec.position_encodings.encodings = _array(stack.token_position.weight[config.position_offset :])
    if config.embedding_norm:
        _fill(spec.layernorm_embedding, stack.embedding_norm)
    if config.norm_position == "pre":
        _fill(spec.layer_norm, stack.norm)
    for layer_spec, layer in zip(spec.layer, stack.layers):
        _fill_layer(layer_spec, layer, config)
        if config.position_embedding == "relative":
            own = layer_spec.self_attention
            own.relative_attention_bias = _array(stack.attention_position.bias.weight)
            own.relative_attention_max_distance = torch.tensor(
                config.relative_attention_max_distance, dtype=torch.int32
            ).numpy()


def _fill_layer(spec: Any, layer: Any, config: Any) -> None:
    own, cross = layer.attention, layer.cross_attention
    for linear_spec, linear in zip(spec.self_attention.linear, (own.qkv_proj, own.out_proj)):
        _fill(linear_spec, linear)
    _fill(spec.self_attention.layer_norm, layer.attention_norm)
    if cross is not None:
        for linear_spec, linear in zip(spec.attention.linear, (cross.q_proj, cross.kv_proj, cross.out_proj)):
            _fill(linear_spec, linear)
        _fill(spec.attention.layer_norm, layer.cross_attention_norm)
    _fill(spec.ffn.layer_norm, layer.mlp_norm)
    _fill(spec.ffn.linear_1, layer.mlp.fc2)
    if config.activation_function not in _GATED:
        _fill(spec.ffn.linear_0, layer.mlp.fc1)
        return
    parts = [layer.mlp.fc1.weight.chunk(2)] + ([layer.mlp.fc1.bias.chunk(2)] if config.use_bias else [])
    for i, linear_spec in enumerate((spec.ffn.linear_0, spec.ffn.linear_0_noact)):
        linear_spec.weight = _array(parts[0][i])
        if config.use_bias:
            linear_spec.bias = _array(parts[1][i])


def _fill(spec: Any, module: nn.Module) -> None:
    names = ("gamma", "beta") if hasattr(spec, "gamma") else ("weight", "bias")
    for name, own in zip(names, ("weight", "bias")):
        tensor = getattr(module, own, None)
        if tensor is not None:
            setattr(spec, name, _array(tensor))


def _array(tensor: torch.Tensor) -> Any:
    # A copy: CTranslate2 scales the weights that it rounds where they are.
    return tensor.detach().float().numpy().copy()


__all__ = ["write"]
