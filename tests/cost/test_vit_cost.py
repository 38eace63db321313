"""The closed forms beside what torch counts and keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.cost import (
    Setup,
    attention_macs,
    attention_matrix_bytes,
    forecast,
    mlp_macs,
    vit_parts,
)
from hf_vit.cost.memory import saved_bytes

BATCH = 2
CASES = {
    "plain": {},
    "drop path": {"drop_path_rate": 0.1},
    "dropout": {"hidden_dropout_prob": 0.1},
    "gated, distilled": {"hidden_act": "swiglu", "use_distillation_token": True},
    "stem": {"patch_embedding": "hybrid", "num_stem_blocks": 1},
    "stem of stride 1": {"patch_embedding": "hybrid", "patch_size": 3, "image_size": [15, 24]},
    "LV-ViT": {"patch_embedding": "lvvit", "residual_scale": 0.5, "use_token_labeling_head": True},
    "class layer": {"num_class_layers": 1},
    "CaiT": {
        "num_class_layers": 2,
        "talking_heads": True,
        "layer_scale_init_value": 1e-5,
        "num_register_tokens": 2,
        "use_distillation_token": True,
    },
    "poolings": {"pooling": ["attention", "weighted", "cls_mean"], "learn_cls_mean_weight": True},
    "BEiT": {
        "position_embedding": "relative_bias_per_layer",
        "key_bias": False,
        "norm_type": "rms_norm",
        "qk_norm": True,
    },
    "EVA": {
        "position_embedding": ["learned_2d", "rope_mixed"],
        "attention_output_norm": True,
        "mlp_hidden_norm": True,
        "embedding_norm": True,
        "proj_bias": False,
        "mlp_bias": False,
        "patch_bias": False,
        "qkv_bias": False,
        "num_register_tokens": 3,
    },
    "patch dropout": {
        "position_embedding": ["sincos_2d", "relative_bias"],
        "patch_dropout_prob": 0.4,
        "pooling": "mean",
    },
    "no classes": {"patch_fit": "crop", "image_size": 18, "num_labels": 0, "pooling": "max", "use_class_token": False},
    "merging": {"token_merging_r": [3, 0, 4], "pooling": ["mean", "cls_mean", "weighted"], "hidden_dropout_prob": 0.1},
    "merging, class layers": {
        "token_merging_r": 3,
        "num_class_layers": 1,
        "talking_heads": True,
        "position_embedding": ["relative_bias_per_layer", "rope_2d"],
    },
    "pruning": {"token_pruning_keep_rate": 0.6, "use_distillation_token": True},
    "heads of their own": {"head_dim": 4, "v_head_dim": 12, "qk_norm": True, "token_pruning_keep_rate": 0.6},
    "narrow queries, EVA's norm": {
        "hidden_size": 30,
        "head_dim": 8,
        "qk_head_dim": 4,
        "position_embedding": "rope_mixed",
        "attention_output_norm": True,
        "token_merging_r": 2,
    },
    "no norm": {"position_embedding_on_prefix": False, "pooling_norm": "none"},
}


def config_of(case, **fields):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": [16, 24],
        "patch_size": 4,
        "num_labels": 5,
        "attn_implementation": "eager",
    }
    return HfViTConfig(**{**sizes, **case, **fields})


def counted_flops(model, backward):
    counter = FlopCounterMode(display=False)
    # Which module an operation belongs to is not asked for, and hooks that find it fail on views of parameters.
    counter.mod_tracker._fw_pre_hook = counter.mod_tracker._fw_post_hook = lambda *arguments: None
    height, width = model.config.image_shape
    images = torch.zeros(BATCH, 3, height, width, device="meta")
    with counter, torch.set_grad_enabled(backward):
        outputs = model(images)
        if backward:
            answers = [outputs.logits] if outputs.token_logits is None else [outputs.logits, outputs.token_logits]
            sum(each.sum() for each in answers).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parameters_and_flops_are_those_of_the_model(case):
    config = config_of(case)
    with torch.device("meta"):
        model = HfViTForImageClassification(config)
    cost = forecast(config, Setup(BATCH, attn_implementation="eager"))
    assert cost.parameters == model.num_parameters()
    assert 2 * cost.macs == counted_flops(model.eval(), backward=False)
    model.train()
    training = Setup(BATCH, training=True)
    assert 2 * forecast(config, training).step_macs == counted_flops(model, backward=True)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    checkpointed = Setup(BATCH, training=True, gradient_checkpointing=True)
    assert 2 * forecast(config, checkpointed).step_macs == counted_flops(model, backward=True)


def test_the_two_formulas_of_the_literature():
    config = config_of({}, use_class_token=False, pooling="mean", num_hidden_layers=1)
    macs = {part.name: part.macs for part in vit_parts(config)}
    patches, size, hidden = 24, 32, 48
    attention = 4 * patches * size**2 + 2 * patches**2 * size
    assert sum(macs[name] for name in ("QKV", "scores", "values", "projection")) == attention
    assert attention_macs(patches, size) == attention
    assert macs["MLP"] == mlp_macs(patches, size, hidden) == 2 * patches * size * hidden


def test_attention_of_32_images_of_640_pixels_takes_2_44_gib():
    assert round(attention_matrix_bytes(32, 8, 1600, 1600) / 2**30, 2) == 2.44
    config = config_of({}, image_size=640, patch_size=16, num_attention_heads=8, use_class_token=False, pooling="mean")
    memory = forecast(config, Setup(32, attn_implementation="eager")).memory
    assert round(memory.attention_matrix / 2**30, 2) == 2.44
    assert forecast(config, Setup(32)).memory.attention_matrix == 0


def bytes_that_autograd_keeps(model, images, mixed_precision):
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed_precision != "no")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("dtype", "mixed_precision"), [("float32", "no"), ("bfloat16", "no"), ("float32", "bf16")])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"layer_scale_init_value": 1e-5},
        {"head_dim": 4},
        {"position_embedding": "rope_2d"},
        {"qk_norm": True},
        {"hidden_act": "swiglu"},
        {"hidden_act": "relu"},
        {"attention_output_norm": True, "mlp_hidden_norm": True},
        {"talking_heads": True, "num_class_layers": 2},
        {"patch_embedding": "hybrid", "num_stem_blocks": 1},
        {"patch_embedding": "lvvit", "residual_scale": 0.5},
        {"hidden_dropout_prob": 0.1},
    ],
    ids=str,
)
def test_activations_are_what_autograd_keeps(case, attn_implementation, dtype, mixed_precision, monkeypatch):
    monkeypatch.setattr("hf_vit.models.cpu_operators.Guarded.mode", "plain")
    config = config_of(case, attn_implementation=attn_implementation)
    model = HfViTForImageClassification(config).to(getattr(torch, dtype)).train()
    kept = bytes_that_autograd_keeps(model, torch.zeros(64, 3, 16, 24), mixed_precision)
    setup = Setup(64, True, dtype, mixed_precision, attn_implementation)
    assert saved_bytes(config, setup) == pytest.approx(kept, rel=0.04)
