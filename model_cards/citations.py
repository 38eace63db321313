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
        "Distillation token",
        "Touvron, Hugo",
        2020,
        "Training data-efficient image transformers & distillation through attention",
        "2012.12877",
        _field("use_distillation_token"),
    ),
    Paper(
        "Knowledge distillation",
        "Hinton, Geoffrey",
        2015,
        "Distilling the Knowledge in a Neural Network",
        "1503.02531",
        _argument("teacher_model_name_or_path"),
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
