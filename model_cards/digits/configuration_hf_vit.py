"""Configuration of the Vision Transformer."""

import difflib
from typing import TYPE_CHECKING, Any

from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .code_version import CodeVersionMixin
from .strict_config import strict_config
from .vit_checks import ABSOLUTE, RELATIVE, ROTARY, check_config, pair
from .vit_variants import variant_fields

if TYPE_CHECKING:  # never run; see CodeVersionMixin
    from .modeling_hf_vit import HfViTModel  # noqa: F401

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
)
_CLOSED_FORM_POSITIONS = ("sincos_1d", "sincos_2d", "rope_2d")
# Where the papers give the prefix tokens a position: ViT and DeiT (learned), BEiT (relative bias). MAE's table of rows
# and columns and the rotary models (EVA-02, DINOv3) leave them without one.
_POSITION_ON_PREFIX_BY_DEFAULT = ("learned", "learned_2d", "sincos_1d", *RELATIVE)

AUTO_MAP = {
    "AutoConfig": "configuration_hf_vit.HfViTConfig",
    "AutoModel": "modeling_hf_vit.HfViTModel",
    "AutoModelForImageClassification": "modeling_hf_vit.HfViTForImageClassification",
    "AutoBackbone": "modeling_hf_vit.HfViTBackbone",
}
# Of a processor's own configuration: a model may be saved beside another's.
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": "image_processing_hf_vit.HfViTImageProcessor"}


def _field_names(config_class: Any) -> set[str]:
    return {*config_class.__dataclass_fields__, "num_labels", "out_features", "out_indices", "attn_implementation"}


@strict_config
class HfViTConfig(CodeVersionMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`HfViTModel`], [`HfViTForImageClassification`] and [`HfViTBackbone`]. Fields that transformers'
    `ViTConfig` has bear its names and meanings.

    Args:
        hidden_size (`int`): width of the tokens; without `head_dim` a multiple of `num_attention_heads`.
        num_hidden_layers (`int`): number of Transformer layers.
        num_attention_heads (`int`): attention heads in each layer.
        intermediate_size (`int`): width of the hidden layer of the MLP.
        head_dim (`int`, *optional*): channels of a head in the layers. `None`: `hidden_size / num_attention_heads`.
        qk_head_dim, v_head_dim (`int`, *optional*): of its queries and keys, and of its values. `None`: `head_dim`.
        hidden_act (`str`): activation of the MLP, a name from `transformers.activations.ACT2FN`, or `"swiglu"`,
            `"geglu"` or `"geglu_tanh"` (2002.05202).
        hidden_dropout_prob (`float`): dropout of the embeddings and of both residual branches, in [0, 1).
        attention_probs_dropout_prob (`float`): dropout of the attention weights, in [0, 1).
        patch_dropout_prob (`float`): share of the patches that each image loses in training (2208.07220), in [0, 1).
            [`HfViTBackbone`] keeps them all.
        token_merging_r (`int` or `list[int]`): patches that each layer merges into those they are most like (ToMe,
            2210.09461), at most half of what it has; a list has a number for each layer. May be set at run time.
        token_pruning_keep_rate (`float` or `list[float]`): share of the patches that layers keep, those that the class
            token looks at most, beside one that the others are fused into (EViT, 2202.07800), in (0, 1]; a number
            counts at a quarter, a half and three quarters of the depth. May be set at run time.
        drop_path_rate (`float`): rate of stochastic depth (1603.09382) in the last layer, in [0, 1); it rises linearly
            from 0 in the first.
        layer_scale_init_value (`float`, *optional*): initial value, above 0, of the learnt scale of each residual
            branch (LayerScale, 2103.17239). `None`: no scale.
        residual_scale (`float`): constant, above 0, that multiplies each residual branch (residual scaling of LV-ViT,
            2104.10858, which divides by 1 or 2).
        initializer_range (`float`): standard deviation of the initial weights, after truncation at two deviations.
        layer_norm_eps (`float`): epsilon of the layer norms.
        image_size (`int` or pair): (height, width) in pixels for which the positions are laid out. Images of other
            sizes are taken too, see [`HfViTModel`]. Given anew while loading, the positions follow.
        patch_size (`int` or pair): (height, width) of a patch in pixels.
        num_channels (`int`): channels of the images.
        qkv_bias (`bool`): biases for queries, keys and values.
        key_bias, proj_bias, mlp_bias, patch_bias (`bool`): biases for the keys (if `qkv_bias`), for the output
            projection of attention, for the MLP and for the patch embedding's linear map.
        norm_type (`str`): `"layer_norm"` or `"rms_norm"` (1910.07467).
        qk_norm (`bool`): norm of each head's queries and keys (2302.05442).
        attention_output_norm (`bool`): norm of the heads' output before its projection (EVA-02, 2303.11331).
        mlp_hidden_norm (`bool`): norm within the MLP, after the activation (EVA-02).
        embedding_norm (`bool`): norm of the embeddings, before the first layer (CLIP, 2103.00020).
        talking_heads (`bool`): mix the heads linearly before and after the softmax (2003.02436).
        num_class_layers (`int`): class-attention layers (CaiT, 2103.17239) after the others. The class and the
            distillation token then enter before the first of them, and they alone change there; registers go through
            the other layers with the patches.
        patch_embedding (`str`): `"conv"`: one linear map of each patch. `"hybrid"`: a small convolutional stem
            (2106.14881), then the linear map. `"lvvit"`: the stem of LV-ViT (2104.10858), three convolutions of 64
            channels, the first of 7 x 7 and stride 2, with group norms, then the linear map; `patch_size` is even.
        patch_fit (`str`): what becomes of images whose height or width is no multiple of the patch size: `"exact"`
            (an error), `"pad"` (zeros on the right and below) or `"crop"` (what is left over there is not looked at,
            as a convolution does).
        num_stem_blocks (`int`): residual blocks (1512.03385) after each convolution of the hybrid's stem.
        position_embedding (`str` or `list[str]`): `"learned"` (a table), `"learned_2d"` (a table of rows plus one of
            columns), `"sincos_1d"` (1706.03762, over the raster order), `"sincos_2d"` (MAE, 2111.06377),
            `"relative_bias"` (one table for all layers, BEiT, 2106.08254), `"relative_bias_per_layer"`, `"rope_2d"`
            (axial rotary embedding on coordinates scaled to [-1, 1], as DINOv3, 2508.10104), `"rope_axial"` (on
            coordinates in patches, as EVA-02, 2303.11331), `"rope_mixed"` (learnt frequencies, RoPE-ViT, 2403.13298)
            or `"none"`. Of the tables and closed forms that are added to the tokens one may be combined in a list with
            relative biases or one rotary embedding.
        position_embedding_on_prefix (`bool` or `"class"`, *optional*): whether the prefix tokens have positions too. A
            learnt table has its own rows for them, with `"class"` for all but the registers; `sincos_1d` counts them
            as the first tokens of the sequence; `sincos_2d`, `rope_2d` and `rope_axial` lay them out on a row above
            the image; a relative bias gives each direction between prefix and patches its own entry. `None`: as in
            each scheme's paper (yes for `learned`, `learned_2d`, `sincos_1d` and relative biases). Without prefix
            tokens it means nothing.
        rope_theta (`float`, *optional*): base of the rotary embedding's periods, above 0. `None`: as in each scheme's
            paper, 100 for `rope_2d` and `rope_axial`, 10 for `rope_mixed`.
        rope_grid_offset (`float`): added to the coordinates of `rope_axial`.
        use_class_token (`bool`): put a learnt class token first.
        use_distillation_token (`bool`): put a learnt distillation token (DeiT, 2012.12877) after the class token; the
            classifier then has two heads.
        num_register_tokens (`int`): register tokens (2309.16588) between the tokens above and the patches.
        registers_first (`bool`): put the registers before the class token.
        pooling (`str` or `list[str]`): how the final tokens become one vector: `"cls"` (class token),
            `"cls_tanh"` (tanh of its linear projection: BERT's pooler, 1810.04805), `"mean"` or `"max"` over patches,
            `"cls_mean"` (a mix of class token and mean), `"weighted"` (softmax of a learnt score per patch,
            2104.05704), `"attention"` (learnt query, multi-head attention and MLP: MAP, 2106.04560) or `"none"`.
            Several names are concatenated. No pooling over patches sees the prefix tokens.
        pooling_norm (`str`, *optional*): final norm `"before"` or `"after"` pooling, or `"none"`. `None`: after for
            mean and max alone (timm's `fc_norm`), before for the rest. A `pooling` given while loading leaves it where
            it was.
        cls_mean_weight (`float`): share of the class token in `cls_mean`, in [0, 1].
        learn_cls_mean_weight (`bool`): learn that share, starting from `cls_mean_weight` (then in (0, 1)).
        use_token_labeling_head (`bool`): classify every patch, too (token labeling, 2104.10858); see `token_labels` of
            [`HfViTForImageClassification`].
        token_labeling_weight (`float`): weight, at least 0, of the patches' loss beside that of the image.
        distillation_type (`str`): `"soft"` (KL divergence) or `"hard"` (the teacher's decision).
        distillation_alpha (`float`): share of the distillation loss, in [0, 1].
        distillation_temperature (`float`): temperature of soft distillation, above 0.
        apply_layernorm (`bool`): whether [`HfViTBackbone`] applies the final norm to its feature maps.
        position_grid_size (pair, *optional*): (rows, columns) on which the coordinates of `sincos_1d`, `sincos_2d` and
            `rope_2d` count whole steps. `None`: the grid of `image_size`. Loading with another `image_size` keeps it.
            The coordinates of `rope_axial` and `rope_mixed` are scaled to it only if it is given.

    Raises:
        ValueError: if a value is outside its range or does not fit the others.
    """

    model_type = "hf_vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    head_dim: int | None = None
    qk_head_dim: int | None = None
    v_head_dim: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    patch_dropout_prob: float | int = 0.0
    token_merging_r: int | list[int] | tuple[int, ...] = 0
    token_pruning_keep_rate: float | int | list[float | int] | tuple[float | int, ...] = 1.0
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | int | None = None
    residual_scale: float | int = 1.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    key_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    patch_bias: bool = True
    norm_type: str = "layer_norm"
    qk_norm: bool = False
    attention_output_norm: bool = False
    mlp_hidden_norm: bool = False
    embedding_norm: bool = False
    talking_heads: bool = False
    num_class_layers: int = 0
    patch_embedding: str = "conv"
    num_stem_blocks: int = 0
    patch_fit: str = "exact"
    position_embedding: str | list[str] | tuple[str, ...] = "learned"
    position_embedding_on_prefix: bool | str | None = None
    rope_theta: float | int | None = None
    rope_grid_offset: float | int = 0.0
    use_class_token: bool = True
    use_distillation_token: bool = False
    num_register_tokens: int = 0
    registers_first: bool = False
    pooling: str | list[str] | tuple[str, ...] = "cls"
    pooling_norm: str | None = None
    cls_mean_weight: float | int = 0.5
    learn_cls_mean_weight: bool = False
    use_token_labeling_head: bool = False
    token_labeling_weight: float | int = 0.5
    distillation_type: str = "soft"
    distillation_alpha: float | int = 0.5
    distillation_temperature: float | int = 3.0
    apply_layernorm: bool = True
    position_grid_size: list[int] | tuple[int, ...] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    # Trainer then hands compute_metrics the mean of the two heads alone.
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "token_groups",
        *("class_logits", "distillation_logits", "token_logits", "hidden_states", "attentions"),
    ]

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        self.check()
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "HfViTConfig":
        """The configuration of a published model, for instance `"vit_small_patch16_224"`,
        `"deit_small_distilled_patch16_384"`, `"cait_s24_224"` or `"lvvit_small"`:
        `{vit,deit}_{size}[_distilled]_patch{P}_{image size}`, `cait_{size}_{image size}` or
        `lvvit_{size}[_{image size}]`.

        Args:
            name: a name of `vit_variants.variant_names`, with any image size that is a multiple of the patch size.
            overrides: fields that take another value.

        Raises:
            ValueError: if there is no such variant, the message lists those that exist; or no such field.
        """
        for unknown in sorted(set(overrides) - _field_names(cls)):
            nearest = difflib.get_close_matches(unknown, _field_names(cls), n=1)
            raise ValueError(f"{unknown} is no field of {cls.__name__}" + "".join(f", nearest: {n}" for n in nearest))
        return cls(**{**variant_fields(name), **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "HfViTConfig":
        """As in the base class; a dictionary of another architecture, or one that lacks a size, in whose place the
        default would change what the weights compute, is a `ValueError`."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"model_type of the checkpoint must be {cls.model_type!r}, got {model_type!r}")
        config_dict = {**{name: kwargs[name] for name in _SIZES if name in kwargs}, **config_dict}
        for name in _SIZES:
            if config_dict.get(name) is None:
                raise ValueError(f"{name} must be in the configuration that is loaded, or be given while loading")
        saved = cls(**config_dict)
        if "pooling" in kwargs:
            kwargs.setdefault("pooling_norm", saved.norm_position)
        if "image_size" in kwargs and set(saved.position_embeddings) & set(_CLOSED_FORM_POSITIONS):
            kwargs.setdefault("position_grid_size", list(saved.position_grid))
        ends_with_last_layer = saved.out_features == saved.stage_names[-1:]
        if (
            "num_hidden_layers" in kwargs
            and ends_with_last_layer
            and not {"out_features", "out_indices"} & set(kwargs)
        ):
            kwargs["out_indices"] = [-1]
        return super().from_dict(config_dict, **kwargs)

    @property
    def output_attentions(self) -> bool:
        """Whether the models return attention weights; they can with any attention implementation."""
        return bool(self._output_attentions)

    @output_attentions.setter
    def output_attentions(self, value: bool) -> None:
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Replaces the base class's check, which allows eager attention alone."""

    @property
    def stage_names(self) -> list[str]:
        """Names of the backbone's stages: the embeddings, then each layer."""
        return ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return pair(self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of `image_size`."""
        return self.image_shape[0] // self.patch_shape[0], self.image_shape[1] // self.patch_shape[1]

    @property
    def position_grid(self) -> tuple[int, int]:
        """`position_grid_size`, or its default."""
        return self.grid_size if self.position_grid_size is None else pair(self.position_grid_size)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers, in this order or the registers
        first."""
        return self._num_class_tokens + self.num_register_tokens

    @property
    def num_layer_prefix_tokens(self) -> int:
        """Those of them that go through the layers: with class-attention layers, the registers alone."""
        return self.num_register_tokens if self.num_class_layers else self.num_prefix_tokens

    @property
    def _num_class_tokens(self) -> int:
        return int(self.use_class_token) + int(self.use_distillation_token)

    @property
    def head_dims(self) -> tuple[int, int]:
        """Channels of a head's queries and keys, and of its values."""
        size = self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim
        return tuple(size if own is None else own for own in (self.qk_head_dim, self.v_head_dim))  # type: ignore[return-value]  # two

    @property
    def class_token_index(self) -> int:
        """Index of the class token in the sequence."""
        return self.num_register_tokens if self.registers_first else 0

    @property
    def distillation_token_index(self) -> int:
        """Index of the distillation token in the sequence."""
        return self.class_token_index + int(self.use_class_token)

    @property
    def position_embeddings(self) -> tuple[str, ...]:
        """The names in `position_embedding`, one or several."""
        names = self.position_embedding
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def absolute_position(self) -> str | None:
        """The scheme among them that is added to the tokens."""
        return next((name for name in self.position_embeddings if name in ABSOLUTE), None)

    @property
    def rotary_position(self) -> str | None:
        """The scheme among them that turns queries and keys."""
        return next((name for name in self.position_embeddings if name in ROTARY), None)

    @property
    def rope_base(self) -> float:
        """`rope_theta`, or its default."""
        if self.rope_theta is not None:
            return self.rope_theta
        return 10.0 if self.rotary_position == "rope_mixed" else 100.0

    @property
    def poolings(self) -> tuple[str, ...]:
        """The names in `pooling`, one or several."""
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    @property
    def pooled_size(self) -> int:
        """Width of the pooled vector."""
        return self.hidden_size * len(self.poolings)

    @property
    def norm_position(self) -> str:
        """`pooling_norm`, or its default for these poolings."""
        if self.pooling_norm is not None:
            return self.pooling_norm
        return "after" if all(name in ("mean", "max") for name in self.poolings) else "before"

    @property
    def norm_after_pooling(self) -> bool:
        """Whether the final norm follows the pooling."""
        return self.norm_position == "after"

    def num_prefix_positions(self, scheme: str | None) -> int:
        """Return how many of the prefix tokens that go through the layers have positions of a scheme, by
        `position_embedding_on_prefix` or its default."""
        on_prefix = self.position_embedding_on_prefix
        if on_prefix is None:
            on_prefix = scheme in _POSITION_ON_PREFIX_BY_DEFAULT and not self.num_class_layers
        if on_prefix == "class":
            return self._num_class_tokens if scheme in ("learned", "learned_2d") else 0
        return self.num_layer_prefix_tokens if on_prefix else 0

    @property
    def prefix_positions(self) -> dict[str, int]:
        """Prefix tokens that have positions of each scheme."""
        return {name: self.num_prefix_positions(name) for name in self.position_embeddings}

    def check(self) -> None:
        """Raise a `ValueError` for the first value that is out of range or does not fit the others. Called at
        construction, and by the models for values that were overridden while loading."""
        check_config(self)


HfViTConfig.register_for_auto_class()

__all__ = ["HfViTConfig"]
