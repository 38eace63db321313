"""Configuration of the detection Transformer."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .code_version import CodeVersionMixin
from .configuration_hf_vit import HfViTConfig
from .strict_config import GATED_ACTIVATIONS, strict_config

if TYPE_CHECKING:  # never run; see CodeVersionMixin
    from .modeling_hf_detr import HfDetrModel  # noqa: F401

CLASS_LOSSES = ("iou_aware", "softmax")
NORM_POSITIONS = ("post", "pre")
NORM_TYPES = ("layer_norm", "rms_norm")

AUTO_MAP = {
    "AutoConfig": "configuration_hf_detr.HfDetrConfig",
    "AutoModel": "modeling_hf_detr.HfDetrModel",
    "AutoModelForObjectDetection": "modeling_hf_detr.HfDetrForObjectDetection",
    "AutoModelForImageSegmentation": "modeling_hf_detr.HfDetrForSegmentation",
    "AutoModelForInstanceSegmentation": "modeling_hf_detr.HfDetrForSegmentation",
    "AutoModelForUniversalSegmentation": "modeling_hf_detr.HfDetrForSegmentation",
}
# Of a processor's own configuration: a model may be saved beside another's.
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": "image_processing_hf_detr.HfDetrImageProcessor"}


@strict_config
class HfDetrConfig(CodeVersionMixin, PreTrainedConfig):
    r"""
    Configuration of [`HfDetrModel`], [`HfDetrForObjectDetection`] and [`HfDetrForSegmentation`]. Fields that
    transformers' `DetrConfig` has bear its names and meanings.

    Without `two_stage`, `box_relative_bias` and `with_box_refine`, with `group_detr=1` and `class_loss="softmax"`, it
    is the set prediction of DETR (2005.12872): learnt queries, a no-object class, one group.

    Args:
        backbone_config (`HfViTConfig`, any backbone's configuration or `dict`, *optional*): of the backbone, whose
            feature maps in `out_features` are mixed. `None`: [`HfViTConfig`]'s default.
        d_model (`int`): width of encoder and decoder; a multiple of 8 and of both numbers of attention heads.
        encoder_layers (`int`): Transformer layers between backbone and decoder. A Vision Transformer needs none.
        decoder_layers (`int`): at least 1.
        encoder_attention_heads, decoder_attention_heads (`int`): attention heads in each layer.
        encoder_ffn_dim, decoder_ffn_dim (`int`): width of the hidden layer of the MLPs.
        num_queries (`int`): queries, the most objects that are found in an image; no more than tokens are used where
            they are chosen from the image.
        two_stage (`bool`): choose the queries from the image (2010.04159): the boxes of the tokens with the highest
            class scores start them, their contents are learnt. `False`: learnt for all images alike.
        prior_box_size (`float`): side, in parts of the image, of the box from which a token predicts its own, with
            `two_stage`; in (0, 1], best the usual size of the objects.
        token_matches (`int`): tokens that each object is matched to in training, with `two_stage` (one-to-many,
            2207.13080); queries are matched to one. At least 1.
        box_relative_bias (`bool`): add to the scores of the cross-attention what small MLPs make of the distances
            from a token's column and row to the sides of a query's box (Plain-DETR, 2308.01904), at first zero.
        box_attention_decay (`float`): what those scores lose a side of a query's box between the box and a token,
            learnt or not, where queries have boxes, so that each looks at its own from the start (2101.07448). At
            least 0, with which nothing is lost.
        with_box_refine (`bool`): each layer corrects the box of the layer before, in units of the box (2010.04159),
            with gradients into both (2203.03605). `False`: each layer predicts from the start.
        group_detr (`int`): groups of queries in training, each matched to all objects (2207.13085); the first alone
            predicts.
        class_loss (`str`): `"iou_aware"`: one sigmoid a class, whose target is a mean of score and IoU
            (2406.03459, 2008.13367). `"softmax"`: cross entropy with a class for no object, the last.
        norm_position (`str`): `"post"` (after each residual sum) or `"pre"` (before each branch).
        norm_type (`str`): `"layer_norm"` or `"rms_norm"`.
        layer_norm_eps (`float`): epsilon of the norms.
        activation_function (`str`): of the MLPs, as in [`HfTransformerConfig`].
        use_bias (`bool`): biases in the attention and the MLPs.
        qk_norm (`bool`): layer norm of each head's queries and keys.
        dropout, attention_dropout, activation_dropout, drop_path_rate (`float`): in [0, 1).
        auxiliary_loss (`bool`): supervise every decoder layer, not the last alone.
        class_cost, bbox_cost, giou_cost, mask_cost, dice_cost (`float`): weights in the matching, at least 0; the last
            two for masks.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient, mask_loss_coefficient,
            dice_loss_coefficient (`float`): weights in the loss, at least 0.
        eos_coefficient (`float`): weight of the no-object class in the cross entropy, above 0.
        mask_upsampling_blocks (`int`): blocks of [`HfDetrForSegmentation`] that double the feature map's resolution
            before masks are predicted.
        stuff_class_ids (`list[int]`): classes of which an image has one segment at most (sky, grass); the rest are
            things.

    Raises:
        ValueError: if a value is outside its range or does not fit the others.
    """

    model_type = "hf_detr"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = [  # noqa: RUF012  the Trainer adds to it
        *("loss_dict", "auxiliary_outputs", "last_hidden_state", "encoder_last_hidden_state"),
        *("decoder_hidden_states", "decoder_attentions", "cross_attentions"),
    ]
    # Names by which the shared layers and transformers' utilities read the fields.
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
        "attention_probs_dropout_prob": "attention_dropout",
        "qkv_bias": "use_bias",
    }

    backbone_config: dict | PreTrainedConfig | None = None
    d_model: int = 256
    encoder_layers: int = 0
    decoder_layers: int = 3
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    num_queries: int = 100
    two_stage: bool = True
    prior_box_size: float = 0.1
    token_matches: int = 4
    box_relative_bias: bool = True
    box_attention_decay: float | int = 4
    with_box_refine: bool = True
    group_detr: int = 1
    class_loss: str = "iou_aware"
    norm_position: str = "post"
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-5
    activation_function: str = "relu"
    use_bias: bool = True
    qk_norm: bool = False
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    auxiliary_loss: bool = True
    class_cost: float | int = 2
    bbox_cost: float | int = 5
    giou_cost: float | int = 2
    mask_cost: float | int = 20
    dice_cost: float | int = 5
    class_loss_coefficient: float | int = 1
    bbox_loss_coefficient: float | int = 5
    giou_loss_coefficient: float | int = 2
    mask_loss_coefficient: float | int = 20
    dice_loss_coefficient: float | int = 5
    eos_coefficient: float = 0.1
    mask_upsampling_blocks: int = 2
    stuff_class_ids: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        self.backbone_config = _backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)
        self.check()

    @property
    def position_embedding(self) -> str:
        """Positions in the shared layer's self-attention: none."""
        return "none"

    @property
    def num_class_outputs(self) -> int:
        """Class logits of a query: the classes and, with `class_loss="softmax"`, no object."""
        return int(self.num_labels or 0) + (self.class_loss == "softmax")

    @property
    def has_reference_boxes(self) -> bool:
        """Whether queries are boxes from the start, with respect to which the decoder predicts."""
        return self.two_stage or self.with_box_refine or self.box_relative_bias

    def check(self) -> None:
        """Raise a `ValueError` for the first value that is out of range or does not fit the others. Called at
        construction, and by the models for values that were overridden while loading."""
        self._check_sizes()
        choices = {
            "class_loss": CLASS_LOSSES,
            "norm_position": NORM_POSITIONS,
            "norm_type": NORM_TYPES,
            "activation_function": (*GATED_ACTIVATIONS, *ACT2FN),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in (f"{term}_{use}" for term in ("class", "bbox", "giou", "mask", "dice") for use in _USES):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not (self.class_cost or self.bbox_cost or self.giou_cost):
            raise ValueError("class_cost, bbox_cost and giou_cost must not all be 0")
        for name in ("layer_norm_eps", "eos_coefficient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.box_attention_decay >= 0:
            raise ValueError(f"box_attention_decay must be at least 0, got {self.box_attention_decay}")
        if not 0 < self.prior_box_size <= 1:
            raise ValueError(f"prior_box_size must be in (0, 1], got {self.prior_box_size}")
        for index in self.stuff_class_ids:
            if not 0 <= index < int(self.num_labels or 0):
                raise ValueError(f"stuff_class_ids must be in [0, {self.num_labels}), got {index}")

    def _check_sizes(self) -> None:
        at_least_one = ("d_model", "decoder_layers", "num_queries", "group_detr", "num_labels", "token_matches")
        sizes = [f"{stack}_{name}" for stack in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")]
        for name in (*at_least_one, *sizes):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_layers", "mask_upsampling_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        multiples = {"8": 8, **{name: getattr(self, name) for name in sizes if name.endswith("heads")}}
        for name, divisor in multiples.items():
            if self.d_model % divisor:
                raise ValueError(f"d_model must be a multiple of {name} ({divisor}), got {self.d_model}")


_USES = ("cost", "loss_coefficient")


def _backbone_config(given: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Return the configuration of the backbone: of ours, by the class beside this one, which the Auto classes need not
    know."""
    if given is None:
        return HfViTConfig()
    if not isinstance(given, dict):
        return given
    if "model_type" not in given:
        raise ValueError(f"backbone_config must have a model_type, got {given}")
    if given["model_type"] == HfViTConfig.model_type:
        return HfViTConfig(**given)
    return AutoConfig.for_model(**given)


HfDetrConfig.register_for_auto_class()

__all__ = ["HfDetrConfig"]
