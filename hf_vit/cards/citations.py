"""The papers whose methods a run used, decided from its configuration and arguments."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv; `method` is what a card names it for, `used` whether (config, arguments) make use of it."""

    method: str
    author: str
    year: int
    title: str
    arxiv: str
    used: Callable[[dict, dict], bool]

    @property
    def bibtex(self) -> str:
        word = next(word for word in self.title.split() if len(word) > 3)
        key = f"{self.author.split(',')[0]}{self.year}{word.strip(':,')}".lower()
        key = "".join(letter for letter in unicodedata.normalize("NFKD", key) if letter.isascii() and letter.isalnum())
        return "\n".join(
            [
                f"@misc{{{key},",
                "  title = {{" + self.title.replace("&", r"\&") + "}},",
                f"  author = {{{self.author} and others}},",
                f"  year = {{{self.year}}},",
                f"  eprint = {{{self.arxiv}}},",
                "  archivePrefix = {arXiv}",
                "}",
            ]
        )


def _field(name: str, *values) -> Callable[[dict, dict], bool]:
    """Whether a configuration's field is one of the values, or simply set when none are given."""
    return lambda config, arguments: config.get(name) in values if values else bool(config.get(name))


def _argument(name: str, *values) -> Callable[[dict, dict], bool]:
    return lambda config, arguments: arguments.get(name) in values if values else bool(arguments.get(name))


def _pooling(name: str) -> Callable[[dict, dict], bool]:
    def used(config: dict, arguments: dict) -> bool:
        pooling = config.get("pooling")
        return name == pooling or (isinstance(pooling, list) and name in pooling)

    return used


def _any(*conditions: Callable[[dict, dict], bool]) -> Callable[[dict, dict], bool]:
    return lambda config, arguments: any(condition(config, arguments) for condition in conditions)


def _mixup(config: dict, arguments: dict) -> bool:
    beside_cutmix = not arguments.get("cutmix_alpha") or arguments.get("mixup_switch_prob", 0.5) < 1
    return bool(arguments.get("mixup_alpha") and arguments.get("mixup_prob", 1) and beside_cutmix)


def _cutmix(config: dict, arguments: dict) -> bool:
    beside_mixup = not arguments.get("mixup_alpha") or arguments.get("mixup_switch_prob", 0.5) > 0
    return bool(arguments.get("cutmix_alpha") and arguments.get("mixup_prob", 1) and beside_mixup)


def _distillation(distillation_type: str) -> Callable[[dict, dict], bool]:
    return lambda config, arguments: (
        bool(arguments.get("teacher")) and arguments.get("distillation_type", "soft") == distillation_type
    )


PAPERS = (
    Paper(
        "Vision Transformer",
        "Dosovitskiy, Alexey",
        2020,
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "2010.11929",
        _field("model_type", "hf_vit", "vit"),
    ),
    Paper(
        "Distillation token or hard distillation",
        "Touvron, Hugo",
        2020,
        "Training data-efficient image transformers & distillation through attention",
        "2012.12877",
        _any(_field("use_distillation_token"), _distillation("hard")),
    ),
    Paper(
        "Knowledge distillation",
        "Hinton, Geoffrey",
        2015,
        "Distilling the Knowledge in a Neural Network",
        "1503.02531",
        _distillation("soft"),
    ),
    Paper(
        "Register tokens",
        "Darcet, Timothée",
        2023,
        "Vision Transformers Need Registers",
        "2309.16588",
        _field("num_register_tokens"),
    ),
    Paper(
        "Convolutional stem",
        "Xiao, Tete",
        2021,
        "Early Convolutions Help Transformers See Better",
        "2106.14881",
        _field("patch_embedding", "hybrid"),
    ),
    Paper(
        "Residual blocks",
        "He, Kaiming",
        2015,
        "Deep Residual Learning for Image Recognition",
        "1512.03385",
        _field("num_stem_blocks"),
    ),
    Paper(
        "Transformer",
        "Vaswani, Ashish",
        2017,
        "Attention Is All You Need",
        "1706.03762",
        _field("model_type", "hf_transformer"),
    ),
    Paper(
        "Sine-cosine position embedding",
        "Vaswani, Ashish",
        2017,
        "Attention Is All You Need",
        "1706.03762",
        _field("position_embedding", "sincos_1d"),
    ),
    Paper(
        "Two-dimensional sine-cosine position embedding",
        "He, Kaiming",
        2021,
        "Masked Autoencoders Are Scalable Vision Learners",
        "2111.06377",
        _field("position_embedding", "sincos_2d"),
    ),
    Paper(
        "Relative position bias",
        "Bao, Hangbo",
        2021,
        "BEiT: BERT Pre-Training of Image Transformers",
        "2106.08254",
        _field("position_embedding", "relative_bias"),
    ),
    Paper(
        "Axial rotary position embedding",
        "Siméoni, Oriane",
        2025,
        "DINOv3",
        "2508.10104",
        _field("position_embedding", "rope_2d"),
    ),
    Paper(
        "Attention pooling",
        "Zhai, Xiaohua",
        2021,
        "Scaling Vision Transformers",
        "2106.04560",
        _pooling("attention"),
    ),
    Paper(
        "Weighted pooling",
        "Hassani, Ali",
        2021,
        "Escaping the Big Data Paradigm with Compact Transformers",
        "2104.05704",
        _pooling("weighted"),
    ),
    Paper(
        "LayerScale",
        "Touvron, Hugo",
        2021,
        "Going deeper with Image Transformers",
        "2103.17239",
        _field("layer_scale_init_value"),
    ),
    Paper(
        "Normalised queries and keys",
        "Dehghani, Mostafa",
        2023,
        "Scaling Vision Transformers to 22 Billion Parameters",
        "2302.05442",
        _field("qk_norm"),
    ),
    Paper(
        "Stochastic depth",
        "Huang, Gao",
        2016,
        "Deep Networks with Stochastic Depth",
        "1603.09382",
        _field("drop_path_rate"),
    ),
    Paper(
        "Gated activation",
        "Shazeer, Noam",
        2020,
        "GLU Variants Improve Transformer",
        "2002.05202",
        _field("hidden_act", "swiglu", "geglu", "geglu_tanh"),
    ),
    Paper(
        "Random resized crop",
        "Szegedy, Christian",
        2014,
        "Going Deeper with Convolutions",
        "1409.4842",
        _argument("train_crop", "random_resized_crop"),
    ),
    Paper(
        "RandAugment",
        "Cubuk, Ekin D.",
        2019,
        "RandAugment: Practical automated data augmentation with a reduced search space",
        "1909.13719",
        _argument("auto_augment", "randaugment"),
    ),
    Paper(
        "TrivialAugment",
        "Müller, Samuel G.",
        2021,
        "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation",
        "2103.10158",
        _argument("auto_augment", "trivialaugment"),
    ),
    Paper(
        "AutoAugment",
        "Cubuk, Ekin D.",
        2018,
        "AutoAugment: Learning Augmentation Policies from Data",
        "1805.09501",
        _argument("auto_augment", "autoaugment_imagenet", "autoaugment_cifar10"),
    ),
    Paper(
        "3-Augment, simple random crop or binary cross entropy",
        "Touvron, Hugo",
        2022,
        "DeiT III: Revenge of the ViT",
        "2204.07118",
        _any(
            _argument("auto_augment", "three_augment"),
            _argument("train_crop", "simple_random_crop"),
            _argument("loss_type", "bce"),
        ),
    ),
    Paper(
        "Random erasing",
        "Zhong, Zhun",
        2017,
        "Random Erasing Data Augmentation",
        "1708.04896",
        _argument("random_erasing_prob"),
    ),
    Paper(
        "MixUp",
        "Zhang, Hongyi",
        2017,
        "mixup: Beyond Empirical Risk Minimization",
        "1710.09412",
        _mixup,
    ),
    Paper(
        "CutMix",
        "Yun, Sangdoo",
        2019,
        "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
        "1905.04899",
        _cutmix,
    ),
    Paper(
        "Repeated augmentation",
        "Hoffer, Elad",
        2019,
        "Augment your batch: better training with larger batches",
        "1901.09335",
        lambda config, arguments: arguments.get("repeated_augmentation", 1) > 1,
    ),
    Paper(
        "Label smoothing",
        "Szegedy, Christian",
        2015,
        "Rethinking the Inception Architecture for Computer Vision",
        "1512.00567",
        _argument("label_smoothing_factor"),
    ),
    Paper(
        "Exponential moving average of the weights",
        "Morales-Brotons, Daniel",
        2024,
        "Exponential Moving Average of Weights in Deep Learning: Dynamics and Benefits",
        "2411.18704",
        lambda config, arguments: bool(arguments.get("ema_decay") and arguments.get("use_ema_weights", True)),
    ),
    Paper(
        "Learning rate in proportion to the batch",
        "Goyal, Priya",
        2017,
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
        "1706.02677",
        _argument("lr_base_batch_size"),
    ),
    Paper(
        "Layer-wise decay of the learning rate",
        "Clark, Kevin",
        2020,
        "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
        "2003.10555",
        lambda config, arguments: arguments.get("layer_decay", 1) < 1,
    ),
    Paper(
        "Fine-tuning of the attention layers",
        "Touvron, Hugo",
        2022,
        "Three things everyone should know about Vision Transformers",
        "2203.09795",
        _argument("train_only", "attention"),
    ),
    Paper(
        "AdamW",
        "Loshchilov, Ilya",
        2017,
        "Decoupled Weight Decay Regularization",
        "1711.05101",
        _argument("weight_decay"),
    ),
    Paper(
        "Cosine schedule",
        "Loshchilov, Ilya",
        2016,
        "SGDR: Stochastic Gradient Descent with Warm Restarts",
        "1608.03983",
        _argument("lr_scheduler_type", "cosine", "cosine_with_restarts", "cosine_with_min_lr"),
    ),
)


def of_methods(config: dict, arguments: dict) -> list[Paper]:
    """The papers of exactly the methods that `config` and `arguments` say were used."""
    return [paper for paper in PAPERS if paper.used(config, arguments)]
