"""Memory of the Vision Transformer in inference and in training, in closed form.

Letters: B batch, T tokens in the layers, N patches, D hidden size, M width of the MLP, H heads, L layers, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_vit.cost.parts import attention_matrix_bytes, mlp_width
from hf_vit.cost.vit import num_class_tokens, num_patches, tokens_by_layer, tokens_in_layers, vit_parts
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.strict_config import GATED_ACTIVATIONS

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIXED_PRECISIONS = ("no", "bf16", "fp16")
ATTENTIONS = ("eager", "sdpa")
# Numbers in fp32 that an optimizer keeps of each parameter.
OPTIMIZER_STATES = {"adamw": 2, "sgd_momentum": 1, "sgd": 0}


@dataclass(frozen=True)
class Setup:
    """How a model is run.

    Args:
        batch_size: images or pairs of texts, at least 1.
        training: with gradients and an optimizer.
        dtype: of the parameters, a name in `DTYPES`.
        mixed_precision: "no", or "bf16" or "fp16": autocast over the parameters' type.
        attn_implementation: "eager", which holds the attention weights of a whole layer, or "sdpa", which does not.
        gradient_checkpointing: compute each layer again in the backward pass.
        optimizer: a name in `OPTIMIZER_STATES`.
        source_tokens, target_tokens: of each text, for the encoder-decoder, at least 1.

    Raises:
        ValueError: if a value is out of range.
    """

    batch_size: int = 1
    training: bool = False
    dtype: str = "float32"
    mixed_precision: str = "no"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    source_tokens: int = 128
    target_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("batch_size", "source_tokens", "target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        choices = {
            "dtype": DTYPES,
            "mixed_precision": MIXED_PRECISIONS,
            "attn_implementation": ATTENTIONS,
            "optimizer": OPTIMIZER_STATES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.gradient_checkpointing and not self.training:
            raise ValueError("gradient_checkpointing must be False without training, got True")

    @property
    def parameter_bytes(self) -> int:
        """Bytes of a parameter, and of a number between the layers."""
        return DTYPES[self.dtype]

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number that goes into a matmul."""
        return self.parameter_bytes if self.mixed_precision == "no" else min(2, self.parameter_bytes)


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs.

    Args:
        parameters: P numbers.
        gradients: P numbers in training.
        optimizer: what it keeps of each parameter, in the parameters' type (AdamW 2 P).
        activations: what the backward pass needs of the forward pass, or 0.
        working: what is there for a moment on top, at the worst moment.
        attention_matrix: the attention weights of one layer, if it holds them whole; part of the two above.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    attention_matrix: int

    @property
    def peak(self) -> int:
        """All of it at the worst moment."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.working


def vit_memory(config: HfViTConfig, setup: Setup) -> Memory:
    """Memory of an image classifier: parameters, gradients, optimizer, `saved_bytes` and `working_bytes`."""
    parameters = sum(part.parameters for part in vit_parts(config)) * setup.parameter_bytes
    tokens = tokens_in_layers(config, setup.training)
    matrix = attention_matrix_bytes(setup.batch_size, config.num_attention_heads, tokens, tokens, setup.compute_bytes)
    matrix *= _is_eager(config, setup)
    if not setup.training:
        copies = _copies(setup, parameters)
        return Memory(parameters, 0, 0, 0, working_bytes(config, setup) + copies, matrix)
    in_forward = 0
    if setup.gradient_checkpointing:  # the copies of all weights are there in the forward pass
        recomputed = max(layer_saved_bytes(config, setup, *of_layer) for of_layer in tokens_by_layer(config, True))
        in_forward = _copies(setup, parameters) + _forward_working_bytes(config, setup) - recomputed
    working = max(working_bytes(config, setup), in_forward - _copies(setup, parameters) // config.num_hidden_layers)
    return whole_memory(setup, parameters, saved_bytes(config, setup), working, matrix, config.num_hidden_layers)


def _copies(setup: Setup, parameters: int) -> int:
    """Bytes of the weights' copies that autocast keeps for a forward pass, and autograd for the backward pass."""
    if setup.compute_bytes == setup.parameter_bytes:
        return 0
    return parameters * setup.compute_bytes // setup.parameter_bytes


def whole_memory(setup: Setup, parameters: int, activations: int, working: int, matrix: int, layers: int) -> Memory:
    """Memory of training, with gradients, what the optimizer keeps, and the weights' copies in the type of the
    matmuls, with gradient checkpointing those of one of the layers alone."""
    copies = _copies(setup, parameters) // (layers if setup.gradient_checkpointing else 1)
    states = parameters * OPTIMIZER_STATES[setup.optimizer]
    return Memory(parameters, parameters, states, activations, working + copies, matrix)


def _is_eager(config: HfViTConfig, setup: Setup) -> bool:
    """Whether a layer's attention weights are held whole: SDPA too does it on a CPU with dropout, and where values
    have another size than queries and keys."""
    if len(set(config.head_dims)) > 1:
        return True
    has_dropout = setup.training and config.attention_probs_dropout_prob > 0
    return setup.attn_implementation == "eager" or config.talking_heads or has_dropout


def saved_bytes(config: HfViTConfig, setup: Setup) -> int:
    """Bytes that autograd keeps of a forward pass: the patches B N C p^2, L layers (`layer_saved_bytes`), the input of
    the final norm B T D, and with class-attention layers theirs. With gradient checkpointing the layers' inputs
    alone, B T D each, and the largest of what the layers keep."""
    tokens, per_token = tokens_by_layer(config, setup.training), config.hidden_size * setup.parameter_bytes
    rows, stream = setup.batch_size * tokens[-1][1], setup.batch_size * tokens[0][0] * per_token
    layers = [layer_saved_bytes(config, setup, *of_layer) for of_layer in tokens]
    in_layers = sum(layers)
    if setup.gradient_checkpointing:
        in_layers = setup.batch_size * per_token * sum(before for before, _ in tokens[1:]) + max(layers)
    patches = setup.batch_size * num_patches(config) * config.num_channels * math.prod(config.patch_shape)
    patches = patches * setup.compute_bytes if config.patch_embedding == "conv" else _stem_saved_bytes(config, setup)
    final = _norm_saved_bytes(config, setup, rows, config.hidden_size, setup.parameter_bytes)
    masks = bool(config.hidden_dropout_prob) * stream
    return patches + masks + in_layers + final + _class_layers_saved_bytes(config, setup)


def layer_saved_bytes(config: HfViTConfig, setup: Setup, tokens: int, in_mlp: int) -> int:
    """Bytes that autograd keeps of one layer with `tokens` in its attention and `in_mlp` in its MLP, in
    numbers of the type that each has:

    - the inputs of the two norms, 2 B T D, and two statistics a token each; their outputs, 2 B T D;
    - queries, keys and values, 3 B T D; the same once more if queries and keys are normed, with SDPA 2 B T D if they
      are turned;
    - eager: the attention weights, B H T^2, in fp32 and, unless that is the type of the matmuls, in theirs too; with
      talking heads three more in theirs, with attention dropout two. SDPA: a number a query and head;
    - the input of the output projection, B T D, twice if it is normed; layer scale, dropout: both branches, 2 B T D;
    - the MLP's hidden layer before and after the activation, 2 B T M (ReLU: 1, gated: 4), once more if it is normed.
    """
    rows, compute, mlp_rows = setup.batch_size * tokens, setup.compute_bytes, setup.batch_size * in_mlp
    size, states = config.hidden_size, rows * config.hidden_size * compute
    mlp_states = mlp_rows * size * compute
    qk, v = (rows * config.num_attention_heads * width * compute for width in config.head_dims)
    kept = _norm_saved_bytes(config, setup, rows, size, setup.parameter_bytes) + states + 2 * (qk + v)
    kept += _norm_saved_bytes(config, setup, mlp_rows, size, setup.parameter_bytes) + mlp_states
    if config.qk_norm:
        heads = rows * config.num_attention_heads
        kept += v + 2 * _norm_saved_bytes(config, setup, heads, config.head_dims[0], compute)
    elif config.rotary_position and not _is_eager(config, setup):
        kept += 2 * qk
    if config.attention_output_norm:
        kept += _norm_saved_bytes(config, setup, rows, config.num_attention_heads * config.head_dims[1], compute)
    if config.mlp_hidden_norm:
        kept += _norm_saved_bytes(config, setup, mlp_rows, config.intermediate_size, compute)
    scales = (config.layer_scale_init_value is not None) + bool(config.hidden_dropout_prob)
    kept += scales * (states + mlp_states)
    kept += mlp_copies(config.hidden_act) * mlp_rows * config.intermediate_size * compute
    return kept + _weights_saved_bytes(config, setup, rows, tokens)


def _norm_saved_bytes(config: HfViTConfig, setup: Setup, rows: int, size: int, bytes_per_number: int) -> int:
    """A layer norm keeps its input and two numbers of the parameters' type a row; an RMS norm, which is made of
    several operations, the input and the normed numbers in fp32, and one."""
    if config.norm_type == "rms_norm":
        return rows * (8 * size + 4)
    return rows * (bytes_per_number * size + 2 * setup.parameter_bytes)


def _weights_saved_bytes(config: HfViTConfig, setup: Setup, queries: int, keys: int) -> int:
    pairs = queries * keys * config.num_attention_heads
    if config.talking_heads:
        return pairs * (4 + 3 * setup.compute_bytes)
    held = pairs if _is_eager(config, setup) else 0
    return kept_of_weights(held, queries * config.num_attention_heads, setup, config.attention_probs_dropout_prob > 0)


def kept_of_weights(pairs: int, rows: int, setup: Setup, has_dropout: bool) -> int:
    """Bytes that autograd keeps of attention weights, of so many pairs in fp32 and in the type of the matmuls, or, if
    they are not held whole (no pairs), of a number a query and head."""
    compute = setup.compute_bytes
    if not pairs:
        return rows * 4
    if has_dropout:
        return pairs * (4 + 2 * compute)
    return pairs * (4 if compute == 4 else 4 + compute)


def mlp_copies(hidden_act: str) -> int:
    """Copies of an MLP's hidden layer that autograd keeps."""
    if hidden_act in GATED_ACTIVATIONS:
        return 4
    return {"relu": 1, "linear": 1, "quick_gelu": 3}.get(hidden_act, 2)


def _stem_saved_bytes(config: HfViTConfig, setup: Setup) -> int:
    """Of each of the stem's convolutions the input, of its norm the input, of ReLU the output: 2 numbers an output of
    a convolution, the image, and the patches of the last map."""
    pixels = setup.batch_size * num_patches(config) * math.prod(config.patch_shape)
    total = pixels * config.num_channels
    if config.patch_embedding == "lvvit":  # three layers of 64 channels
        return (total + (2 * 3 + 1) * 64 * pixels // 4) * setup.compute_bytes
    smallest = math.gcd(*config.patch_shape)
    halvings = (smallest & -smallest).bit_length() - 1
    layers = max(halvings, 1)
    for i in range(layers):
        pixels //= 4 if halvings else 1
        width = max(config.hidden_size // 2 ** (layers - i), 8)
        total += 2 * pixels * width * (1 + 2 * config.num_stem_blocks)
    return (total + pixels * width) * setup.compute_bytes


def _class_layers_saved_bytes(config: HfViTConfig, setup: Setup) -> int:
    """Of a class-attention layer the normed tokens and their keys and values, B (P + T) D each and their sum before
    the norm; what its P class tokens add is small."""
    own = num_class_tokens(config)
    keys = setup.batch_size * (own + tokens_by_layer(config, setup.training)[-1][1])
    layer = keys * config.hidden_size * (setup.parameter_bytes + 3 * setup.compute_bytes)
    layer += setup.batch_size * own * (6 * config.hidden_size + 2 * config.intermediate_size) * setup.compute_bytes
    return config.num_class_layers * layer


def working_bytes(config: HfViTConfig, setup: Setup) -> int:
    """Bytes that one layer holds for a moment, at its worst, which is the first: it has the most tokens.

    Inference, with the sizes in bytes: in attention the residual stream, its norm, queries, keys and values, two
    copies of factors, 7 B T D, and the scores beside the attention weights, 2 B H T^2; in the MLP the stream before
    and after attention, the branch, the norm, the result, 5 B T D, and the hidden layer before and after the
    activation, 2 B T M.

    Training: when the backward pass comes to a layer's MLP, all is there that the layer keeps, and on top the gradient
    of the hidden layer, B T M, and of a weight, M D, and, where matmuls have a type of their own, B T D in it. When it
    comes to the attention, what the MLP kept, 2 B T D and the hidden layers, has gone, and the gradients of the
    attention weights and of the scores, 2 B H T^2, are there. The gradient of the residual stream takes the room of
    the input of the final norm.
    """
    if not setup.training:
        return _forward_working_bytes(config, setup)
    tokens = tokens_in_layers(config, True)
    rows, compute = setup.batch_size * tokens, setup.compute_bytes
    states = rows * config.hidden_size * compute
    weight = mlp_width(config.hidden_act, config.intermediate_size) * config.hidden_size * compute
    converted = states if compute < setup.parameter_bytes else 0
    in_mlp = rows * config.intermediate_size * compute + weight + converted
    kept_by_mlp = mlp_copies(config.hidden_act) * rows * config.intermediate_size * compute
    kept_by_mlp += rows * config.hidden_size * (setup.parameter_bytes + compute)
    # In a type of less than fp32 the attention weights have been used in theirs, and are gone, when the gradients are.
    pairs = rows * tokens * config.num_attention_heads if _is_eager(config, setup) else 0
    return max(in_mlp, pairs * (8 if compute == 4 else 8 - compute) + 2 * states - kept_by_mlp)


def _forward_working_bytes(config: HfViTConfig, setup: Setup) -> int:
    """What a layer holds in its forward pass, beside what autograd keeps of it."""
    tokens = tokens_in_layers(config, setup.training)
    rows, compute = setup.batch_size * tokens, setup.compute_bytes
    states, stream = rows * config.hidden_size * compute, rows * config.hidden_size * setup.parameter_bytes
    hidden = rows * (mlp_width(config.hidden_act, config.intermediate_size) + config.intermediate_size) * compute
    pairs = rows * tokens * config.num_attention_heads if _is_eager(config, setup) else 0
    scores = pairs * (8 if compute == 4 else 8 + compute)
    # Under autocast norms and sums are in the parameters' type, and what enters a matmul is there in both.
    beside_mlp = 5 * stream + (states if compute < setup.parameter_bytes else 0)
    return max(stream + (7 if scores else 6) * states + scores, beside_mlp + hidden)
