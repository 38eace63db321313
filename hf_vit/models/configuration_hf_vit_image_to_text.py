"""Configuration of the Vision Transformer that writes texts."""

from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PreTrainedConfig

from .code_version import CodeVersionMixin
from .configuration_hf_transformer import HfTransformerConfig
from .configuration_hf_vit import PROCESSOR_AUTO_MAP, HfViTConfig
from .strict_config import strict_config

if TYPE_CHECKING:  # never run; see CodeVersionMixin
    from .modeling_hf_vit_image_to_text import HfViTForImageToText  # noqa: F401

AUTO_MAP = {
    "AutoConfig": "configuration_hf_vit_image_to_text.HfViTImageToTextConfig",
    "AutoModelForImageTextToText": "modeling_hf_vit_image_to_text.HfViTForImageToText",
}
# Serves pipeline("image-to-text") where transformers has none of its own.
CUSTOM_PIPELINES = {
    "image-to-text": {"impl": "pipeline_image_to_text.ImageToTextPipeline", "pt": ["AutoModelForImageTextToText"]}
}
# What a decoder must be to stand behind another model's encoder.
_DECODER = {"is_decoder": True, "is_encoder_decoder": False, "add_cross_attention": True}


@strict_config
class HfViTImageToTextConfig(CodeVersionMixin, PreTrainedConfig):
    r"""
    Configuration of [`HfViTForImageToText`]: a Vision Transformer, and the decoder of a Transformer that attends to
    all of its tokens.

    Args:
        vision_config (`HfViTConfig` or `dict`, *optional*): of the encoder. Its tokens are normed: a final norm behind
            the pooling (`pooling_norm="after"`, the default of `mean` and `max`) is refused. `None`: the default
            without a class token and without pooling.
        text_config (`HfTransformerConfig` or `dict`, *optional*): of the decoder, which is marked as one; its
            `cross_attention_hidden_size` is the encoder's width. It says which tokens there are, whether embeddings
            and output are tied, and the label smoothing. `None`: the default.

    Raises:
        ValueError: if a value is outside its range or does not fit the others.
    """

    model_type = "hf_vit_image_to_text"
    sub_configs = {"vision_config": HfViTConfig, "text_config": HfTransformerConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  the Trainer adds to it

    vision_config: Any = None
    text_config: Any = None
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()})
        # By the classes beside this one, which the Auto classes need not know.
        vision = {"use_class_token": False, "pooling": "none"} if self.vision_config is None else self.vision_config
        self.vision_config = HfViTConfig(**_given("vision_config", vision, HfViTConfig.model_type))
        text = _given("text_config", self.text_config or {}, HfTransformerConfig.model_type)
        self.text_config = HfTransformerConfig(
            **{**text, **_DECODER, "cross_attention_hidden_size": self.vision_config.hidden_size}
        )
        super().__post_init__(**kwargs)
        self.check()

    # By these names `generate` and others ask the whole model.
    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.text_config.decoder_layers

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the decoder's embedding table is the output projection too."""
        return self.text_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self.text_config.tie_word_embeddings = value

    def check(self) -> None:
        """Raise a `ValueError` for the first value that is out of range or does not fit the others. Called at
        construction, and by the model for values that were changed since."""
        self.vision_config.check()
        self.text_config.check()
        if self.vision_config.norm_after_pooling:
            raise ValueError(
                "vision_config must norm the tokens that the decoder reads: give pooling 'none', or pooling_norm "
                f"'before', got pooling {self.vision_config.pooling!r}"
            )
        width = self.text_config.cross_attention_hidden_size
        if width != self.vision_config.hidden_size:
            raise ValueError(
                f"cross_attention_hidden_size of text_config must be the encoder's hidden_size "
                f"({self.vision_config.hidden_size}), got {width}"
            )


def _given(name: str, config: Any, model_type: str) -> dict[str, Any]:
    """The fields of a configuration or a dictionary of it."""
    if not isinstance(config, (dict, PreTrainedConfig)):
        raise ValueError(f"{name} must be a configuration or a dictionary of one, got {config!r}")
    fields = dict(config) if isinstance(config, dict) else config.to_dict()
    if fields.pop("model_type", model_type) != model_type:
        found = config.get("model_type") if isinstance(config, dict) else config.model_type
        raise ValueError(f"{name} must be of model_type {model_type!r}, got {found!r}")
    return fields


HfViTImageToTextConfig.register_for_auto_class()

__all__ = ["PROCESSOR_AUTO_MAP", "HfViTImageToTextConfig"]
