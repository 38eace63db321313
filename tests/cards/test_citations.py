"""A card cites a paper exactly when the run used its method."""

import pytest

from hf_vit import HfTransformerConfig, HfViTConfig
from hf_vit.cards.citations import CITATIONS_FILE, Paper, of_methods, papers
from hf_vit.train import parse

# Of each paper, by its method: configurations and arguments that use it, and some that nearly do.
MIXED = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mixup_prob": 1.0, "mixup_switch_prob": 0.5}
TAUGHT = {"teacher": ["someone/teacher"]}
CASES = {
    "Vision Transformer": ([{"model_type": "hf_vit"}, {"model_type": "vit"}], [{"model_type": "hf_transformer"}]),
    "Distillation token or hard distillation": (
        [{"use_distillation_token": True}, {**TAUGHT, "distillation_type": "hard"}],
        [{"distillation_type": "hard"}, {**TAUGHT, "distillation_type": "soft"}, {"use_distillation_token": False}],
    ),
    "Knowledge distillation": (
        [TAUGHT, {**TAUGHT, "distillation_type": "soft"}],
        [{**TAUGHT, "distillation_type": "hard"}, {"teacher": [], "distillation_type": "soft"}],
    ),
    "Low-rank adapters": ([{"lora_r": 8}], [{"lora_r": None}]),
    "Gradual unfreezing": ([{"gradual_unfreezing_epochs": 2.0}], [{"gradual_unfreezing_epochs": None}]),
    "Register tokens": ([{"num_register_tokens": 4}], [{"num_register_tokens": 0}]),
    "Convolutional stem": ([{"patch_embedding": "hybrid"}], [{"patch_embedding": "linear"}]),
    "Token labeling, MixToken, or LV-ViT's stem and residual scaling": (
        [
            {"token_label_annotator": "x", "token_labeling_weight": 0.5},
            {"token_label_column_name": "mask", "token_labeling_weight": 0.5},
            {"patch_embedding": "lvvit"},
            {"residual_scale": 0.5},
        ],
        [{"token_label_annotator": "x", "token_labeling_weight": 0.0}, {"residual_scale": 1.0}],
    ),
    "Residual blocks": ([{"num_stem_blocks": 1}], [{"num_stem_blocks": 0}]),
    "Transformer": ([{"model_type": "hf_transformer"}], [{"model_type": "marian"}]),
    "Sine-cosine position embedding": ([{"position_embedding": "sincos_1d"}], [{"position_embedding": "learned"}]),
    "Two-dimensional sine-cosine position embedding": (
        [{"position_embedding": "sincos_2d"}],
        [{"position_embedding": "sincos_1d"}],
    ),
    "Relative position bias": ([{"position_embedding": "relative_bias"}], [{"position_embedding": "none"}]),
    "Axial rotary position embedding": ([{"position_embedding": "rope_2d"}], [{"position_embedding": None}]),
    "Attention pooling": ([{"pooling": "attention"}, {"pooling": ["cls", "attention"]}], [{"pooling": ["cls"]}]),
    "Weighted pooling": ([{"pooling": "weighted"}, {"pooling": ["weighted", "max"]}], [{"pooling": "mean"}]),
    "LayerScale": ([{"layer_scale_init_value": 1e-4}], [{"layer_scale_init_value": None}]),
    "Normalised queries and keys": ([{"qk_norm": True}], [{"qk_norm": False}]),
    "Stochastic depth": ([{"drop_path_rate": 0.1}], [{"drop_path_rate": 0.0}]),
    "Gated activation": (
        [{"hidden_act": "swiglu"}, {"hidden_act": "geglu"}, {"hidden_act": "geglu_tanh"}],
        [{"hidden_act": "gelu"}],
    ),
    "Random resized crop": ([{"train_crop": "random_resized_crop"}], [{"train_crop": "random_crop"}]),
    "RandAugment": ([{"auto_augment": "randaugment"}], [{"auto_augment": None}]),
    "TrivialAugment": ([{"auto_augment": "trivialaugment"}], [{"auto_augment": "randaugment"}]),
    "AutoAugment": (
        [{"auto_augment": "autoaugment_imagenet"}, {"auto_augment": "autoaugment_cifar10"}],
        [{"auto_augment": "three_augment"}],
    ),
    "3-Augment, simple random crop or binary cross entropy": (
        [{"auto_augment": "three_augment"}, {"train_crop": "simple_random_crop"}, {"loss_type": "bce"}],
        [{"loss_type": "cross_entropy"}],
    ),
    "Random erasing": ([{"random_erasing_prob": 0.25}], [{"random_erasing_prob": 0.0}]),
    "MixUp": (
        [MIXED, {"mixup_alpha": 0.8}, {"mixup_alpha": 0.8, "mixup_prob": 1.0, "mixup_switch_prob": 1.0}],
        [{**MIXED, "mixup_switch_prob": 1.0}, {**MIXED, "mixup_prob": 0.0}, {**MIXED, "mixup_alpha": 0.0}],
    ),
    "CutMix": (
        [MIXED, {"cutmix_alpha": 1.0}, {"cutmix_alpha": 1.0, "mixup_switch_prob": 0.0}],
        [{**MIXED, "mixup_switch_prob": 0.0}, {**MIXED, "mixup_prob": 0.0}, {**MIXED, "cutmix_alpha": None}],
    ),
    "Repeated augmentation": ([{"repeated_augmentation": 3}], [{"repeated_augmentation": 1}]),
    "Label smoothing": ([{"label_smoothing_factor": 0.1}], [{"label_smoothing_factor": 0.0}]),
    "Exponential moving average of the weights": (
        [{"ema_decay": 0.99}, {"ema_decay": 0.99, "use_ema_weights": True}],
        [{"ema_decay": 0.99, "use_ema_weights": False}, {"ema_decay": None, "use_ema_weights": True}],
    ),
    "Learning rate in proportion to the batch": ([{"lr_base_batch_size": 256}], [{"lr_base_batch_size": None}]),
    "Layer-wise decay of the learning rate": ([{"layer_decay": 0.75}], [{"layer_decay": 1.0}]),
    "Fine-tuning of the attention layers": ([{"train_only": "attention"}], [{"train_only": None}]),
    "AdamW": ([{"weight_decay": 0.05}], [{"weight_decay": 0.0}]),
    "Cosine schedule": (
        [{"lr_scheduler_type": f"cosine{kind}"} for kind in ("", "_with_restarts", "_with_min_lr")],
        [{"lr_scheduler_type": "linear"}],
    ),
}


def test_every_paper_has_its_cases():
    assert list(CASES) == [paper.method for paper in papers()]


@pytest.mark.parametrize("paper", papers(), ids=lambda paper: paper.method)
def test_a_paper_is_cited_when_its_method_is_used(paper):
    using, others = CASES[paper.method]
    origin = {name.partition(".")[0] for alternative in paper.used for name in alternative}
    for values in using:
        found = of_methods(values, values)
        assert paper in found and not paper.is_used({}), "a run of which nothing is known uses no method"
        if len(origin) == 1:  # a field of the configuration is no argument of the same name, nor the other way round
            assert paper not in of_methods(*(({}, values) if origin == {"config"} else (values, {})))
    for values in others:
        assert paper not in of_methods(values, values)


def test_the_rules_name_fields_and_arguments_that_there_are():
    known = {f"arguments.{name}" for recipe in ("digits", "dates") for name in parse(["--recipe", recipe]).to_dict()}
    known |= {f"config.{name}" for config in (HfViTConfig(), HfTransformerConfig()) for name in config.to_dict()}
    assert {name for paper in papers() for alternative in paper.used for name in alternative} <= known


@pytest.mark.parametrize("condition", ["sometimes", {"above": 1, "below": 2}, {"beside": 1}, 3, None])
def test_an_unknown_condition_is_an_error(condition):
    paper = Paper("x", "A, B", 2000, "Some title", "0000.00000", [{"config.x": condition}])
    with pytest.raises(ValueError, match=r"condition must be a list, not, set, .*found"):
        paper.is_used({"config.x": 1})


def test_a_task_lists_papers_of_its_own(tmp_path):
    (tmp_path / CITATIONS_FILE).write_text(
        '[{method: Boxes, author: "B, C", year: 2020, title: "Finding boxes", arxiv: "1", '
        "used: [{arguments.boxes: {above: 2}}]}]"
    )
    cited = of_methods({}, {"boxes": 3, "weight_decay": 0.1}, tmp_path)
    assert [paper.method for paper in cited] == ["AdamW", "Boxes"]
    assert of_methods({}, {"boxes": 2}, tmp_path) == []


@pytest.mark.parametrize(
    "flags, papers",
    [
        ("", set()),
        ("--mixup_alpha 0.8", {"1710.09412"}),
        ("--mixup_alpha 0.8 --mixup_prob 0", set()),
        ("--mixup_alpha 0.8 --cutmix_alpha 1", {"1710.09412", "1905.04899"}),
        ("--mixup_alpha 0.8 --cutmix_alpha 1 --mixup_switch_prob 1", {"1905.04899"}),
        ("--auto_augment randaugment --random_erasing_prob 0.2", {"1909.13719", "1708.04896"}),
        ("--auto_augment trivialaugment --repeated_augmentation 3", {"2103.10158", "1901.09335"}),
        ("--auto_augment autoaugment_cifar10 --label_smoothing_factor 0.1", {"1805.09501", "1512.00567"}),
        ("--auto_augment three_augment --train_crop simple_random_crop --loss_type bce", {"2204.07118"}),
        ("--train_crop random_resized_crop --ema_decay 0.99", {"1409.4842", "2411.18704"}),
        ("--ema_decay 0.99 --no_use_ema_weights", set()),
        ("--teacher someone/teacher", {"1503.02531"}),
        ("--teacher someone/teacher --distillation_type hard", {"2012.12877"}),
        (
            "--lr_base_batch_size 256 --layer_decay 0.75 --train_only attention",
            {"1706.02677", "2003.10555", "2203.09795"},
        ),
    ],
)
def test_citations_follow_the_flags_of_training(tmp_path, flags, papers):
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("dataset_name: someone/images")
    arguments = parse(["--recipe", str(recipe), *flags.split()]).to_dict()
    assert {paper.arxiv for paper in of_methods({}, arguments)} == papers | {"1711.05101", "1608.03983"}
