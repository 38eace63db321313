"""Shared by all tests: a closed network, one thread, and tiny Vision Transformers that differ in every part."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from random_weights import randomise

from hf_vit import HfViTConfig, HfViTForImageClassification

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
# Between them every pooling, position, patch embedding and option of the model.
ARCHITECTURES = {
    "cls-learned": {},
    "distilled-learned_2d": {
        "use_distillation_token": True,
        "position_embedding": "learned_2d",
        "layer_scale_init_value": 0.1,
    },
    "mean-sincos_2d": {"pooling": "mean", "use_class_token": False, "position_embedding": "sincos_2d"},
    "attention-rope_2d": {
        "pooling": "attention",
        "position_embedding": "rope_2d",
        "num_register_tokens": 2,
        "qk_norm": True,
        "qkv_bias": False,
    },
    "weighted-relative_bias": {"pooling": "weighted", "position_embedding": "relative_bias"},
    "cls_mean-sincos_1d-hybrid": {
        "pooling": "cls_mean",
        "cls_mean_weight": 0.3,
        "learn_cls_mean_weight": True,
        "position_embedding": "sincos_1d",
        "patch_embedding": "hybrid",
    },
    "list-none-oblong-swiglu-stem_blocks": {
        "pooling": ["cls", "max", "attention"],
        "pooling_norm": "after",
        "hidden_act": "swiglu",
        "position_embedding": "none",
        "image_size": [16, 24],
        "patch_size": [4, 8],
        "patch_embedding": "hybrid",
        "num_stem_blocks": 1,
    },
    "lvvit-residual_scale": {"patch_embedding": "lvvit", "residual_scale": 0.5},
    "class_layers-talking_heads-rope_mixed": {
        "num_class_layers": 2,
        "talking_heads": True,
        "use_distillation_token": True,
        "num_register_tokens": 1,
        "pooling": ["cls", "mean"],
        "position_embedding": ["rope_mixed", "relative_bias_per_layer"],
        "layer_scale_init_value": 0.1,
    },
    "mean-rope_axial-rms_norm-registers_first": {
        "pooling": ["mean", "cls"],
        "pooling_norm": "none",
        "position_embedding": ["learned", "rope_axial"],
        "norm_type": "rms_norm",
        "num_register_tokens": 2,
        "registers_first": True,
        "qk_norm": True,
        "hidden_act": "geglu",
        "patch_fit": "pad",
        **dict.fromkeys(("attention_output_norm", "mlp_hidden_norm", "embedding_norm"), True),
        **dict.fromkeys(("key_bias", "proj_bias", "mlp_bias", "patch_bias"), False),
    },
}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, request):
    """The folder of the smallest run there is, see `training_runs.tiny_run`."""
    from training_runs import tiny_run

    return tiny_run(tmp_path_factory, getattr(request.config, "workerinput", {}).get("workerid", "master"))


@pytest.fixture
def tiny_config():
    """`tiny_config(**options)`: the smallest sensible configuration, changed by the options."""
    return lambda **options: HfViTConfig(**{**TINY, **options})


@pytest.fixture
def tiny_model(tiny_config):
    """`tiny_model(model_class, **options)`: a random model in eval mode."""

    def make(model_class=HfViTForImageClassification, **options):
        return randomise(model_class(tiny_config(**options)))

    return make


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def architecture(request):
    """The options of each architecture in turn."""
    return request.param


@pytest.fixture
def model(tiny_model, architecture):
    """A random classifier of each architecture in turn."""
    return tiny_model(**architecture)


@pytest.fixture
def images():
    """`images(model_or_config, batch_size, height, width)`: normalised images, by default of the native size."""

    def make(config, batch_size=3, height=None, width=None):
        config = getattr(config, "config", config)
        size = (height or config.image_shape[0], width or config.image_shape[1])
        return torch.randn(batch_size, config.num_channels, *size, generator=torch.Generator().manual_seed(1))

    return make
