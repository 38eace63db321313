"""The same Vision Transformer as ours, timm's and transformers', and its matmuls alone."""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers

from hf_vit.conversion.models import from_peer
from hf_vit.models.cpu_operators import onednn_linear, pack_weight

MODELS = {
    "ViT-Ti/16": "vit_tiny_patch16_224",
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEERS = ("timm", "transformers")
_NAMES = (  # of timm, and of transformers
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("blocks.", "vit.layers."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
    ("head.", "classifier."),
)


def make_models(
    model: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any
) -> dict[str, torch.nn.Module]:
    """Ours, timm's and transformers' model with the same random weights, in eval mode.

    Args:
        model: a name of timm's.
        options: of `timm.create_model`.
    """
    torch.manual_seed(0)
    peer = timm.create_model(model, **{"num_classes": 1000, **options}).eval()
    models = {"ours": from_peer(peer).eval(), "timm": peer, "transformers": transformers_twin(peer)}
    return {name: each.to(device, dtype) for name, each in models.items()}


def packed(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of ours with its weights packed."""
    return copy.deepcopy(model).pack_weights()


def transformers_twin(peer: torch.nn.Module) -> torch.nn.Module:
    """transformers' ViT with the weights of timm's."""
    block: Any = peer.blocks[0]
    config = transformers.ViTConfig(
        image_size=peer.patch_embed.img_size[0],
        patch_size=peer.patch_embed.patch_size[0],
        hidden_size=peer.embed_dim,
        num_hidden_layers=len(peer.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        layer_norm_eps=block.norm1.eps,
        num_labels=peer.num_classes,
    )
    weights = {}
    for name, value in peer.state_dict().items():
        for old, new in _NAMES:
            name = name.replace(old, new)
        name = f"vit.layer{name}" if name.startswith("norm.") else name
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3)):
                weights[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            weights[name] = value
    model = transformers.ViTForImageClassification(config).eval()
    model.load_state_dict(weights)
    return model


def logits_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, classes)"""
    output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def matmuls_of(model: Any, batch_size: int, dtype: torch.dtype, device: str) -> tuple[Callable[[], None], float]:
    """The matmuls of timm's model alone, without biases, over weights packed for oneDNN on a CPU, as a function, and
    how many floating-point operations they are."""
    size, tokens, width = model.embed_dim, model.pos_embed.shape[1], model.blocks[0].mlp.fc1.out_features
    heads = model.blocks[0].attn.num_heads
    patch = model.patch_embed.proj.weight[0].numel()
    shapes = [(tokens - 1, patch, size)]
    shapes += len(model.blocks) * [(tokens, size, 3 * size), (tokens, size, size), (tokens, size, width)]
    shapes += len(model.blocks) * [(tokens, width, size)]
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    states = {shape: torch.randn(batch_size, *shape[:2], **options) for shape in set(shapes)}
    pack = pack_weight[dtype] if device == "cpu" else torch.nn.Identity()
    multiply = onednn_linear if device == "cpu" else torch.nn.functional.linear
    # Each layer has weights of its own, as in the model: at small batches they are read from memory.
    linears = [(states[shape], pack(torch.randn(shape[2], shape[1], **options))) for shape in shapes]
    queries = torch.randn(batch_size * heads, tokens, size // heads, **options)
    weights = torch.randn(batch_size * heads, tokens, tokens, **options)

    def run() -> None:
        with torch.inference_mode():
            for given, weight in linears:
                multiply(given, weight)
            for _ in model.blocks:
                torch.bmm(queries, queries.transpose(1, 2))
                torch.bmm(weights, queries)

    count = sum(2 * rows * inputs * outputs for rows, inputs, outputs in shapes)
    return run, batch_size * (count + len(model.blocks) * 4 * tokens * tokens * size)
