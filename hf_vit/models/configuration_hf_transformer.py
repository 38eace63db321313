"""Configuration of the encoder-decoder Transformer."""

from typing import TYPE_CHECKING, Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .code_version import CodeVersionMixin
from .strict_config import GATED_ACTIVATIONS, strict_config

if TYPE_CHECKING:  # never run; see CodeVersionMixin
    from .modeling_hf_transformer import HfTransformerModel  # noqa: F401

POSITION_EMBEDDINGS = ("sinusoidal", "learned", "relative", "relative_xl", "rope")
NORM_POSITIONS = ("post", "pre")
NORM_TYPES = ("layer_norm", "rms_norm")

AUTO_MAP = {
    "AutoConfig": "configuration_hf_transformer.HfTransformerConfig",
    "AutoModel": "modeling_hf_transformer.HfTransformerModel",
    "AutoModelForSeq2SeqLM": "modeling_hf_transformer.HfTransformerForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_hf_transformer.HfTransformerForCausalLM",
}
# Serves pipeline("translation") where transformers has none of its own.
CUSTOM_PIPELINES = {
    "translation": {"impl": "pipeline_translation.TranslationPipeline", "pt": ["AutoModelForSeq2SeqLM"]}
}


@strict_config
class HfTransformerConfig(CodeVersionMixin, PreTrainedConfig):
    r"""
    Configuration of [`HfTransformerModel`], [`HfTransformerForConditionalGeneration`] and
    [`HfTransformerForCausalLM`]. Fields that transformers' `MarianConfig` has bear its names and meanings; the default
    is the base model of the paper (1706.03762).

    Args:
        vocab_size (`int`): tokens of the decoder's vocabulary, and of the encoder's unless `encoder_vocab_size` is
            given.
        encoder_vocab_size (`int`, *optional*): tokens of the encoder's vocabulary. `None`: as many as `vocab_size`.
        d_model (`int`): width of the tokens; a multiple of both numbers of attention heads.
        encoder_layers (`int`): number of encoder layers.
        decoder_layers (`int`): number of decoder layers.
        encoder_attention_heads (`int`): attention heads in each encoder layer.
        decoder_attention_heads (`int`): attention heads in each decoder layer.
        encoder_ffn_dim (`int`): width of the hidden layer of the encoder's MLPs.
        decoder_ffn_dim (`int`): width of the hidden layer of the decoder's MLPs.
        activation_function (`str`): activation of the MLPs, a name from `transformers.activations.ACT2FN`, or
            `"swiglu"`, `"geglu"` or `"geglu_tanh"`, where one half of the hidden layer gates the other (2002.05202).
        position_embedding (`str`): `"sinusoidal"` (1706.03762), `"learned"` (a table), `"relative"` (a learnt number
            per head and bucket of distances, T5, 1910.10683), `"relative_xl"` (scores of content and of distance,
            Transformer-XL, 1901.02860, as in XLNet) or `"rope"` (2104.09864). The first two count the tokens that the
            mask keeps, so that padding on the left moves no token.
        max_position_embeddings (`int`): rows of the `learned` table, the most tokens such a model takes. The other
            schemes take any number.
        position_offset (`int`): rows of the `learned` table before that of the first position, which no token reads
            (2 in BART, 1910.13461).
        relative_attention_num_buckets (`int`): buckets of distances of `relative`; even, at least 4.
        relative_attention_max_distance (`int`): distance from which on all share the last bucket of `relative`.
        norm_position (`str`): `"post"`: after each residual sum, as in the paper. `"pre"`: before each branch, and
            once more at the end of the encoder and of the decoder (2002.04745).
        embedding_norm (`bool`): one more norm, of the sum of embeddings and positions (BART, mBART, 2001.08210).
        norm_type (`str`): `"layer_norm"` or `"rms_norm"` (1910.07467).
        layer_norm_eps (`float`): epsilon of the norms.
        use_bias (`bool`): biases in the attention and the MLPs.
        qk_norm (`bool`): layer norm of each head's queries and keys (2302.05442).
        scale_embedding (`bool`): multiply the token embeddings by sqrt(d_model), as in the paper.
        share_encoder_decoder_embeddings (`bool`): one embedding table for encoder and decoder.
        tie_word_embeddings (`bool`): the decoder's embedding table is the output projection too.
        lm_head_bias (`bool`): a learnt bias of each token of the output.
        dropout (`float`): dropout of the embeddings and of each residual branch, in [0, 1).
        attention_dropout (`float`): dropout of the attention weights, in [0, 1).
        activation_dropout (`float`): dropout of the hidden layer of the MLPs, in [0, 1).
        drop_path_rate (`float`): rate of stochastic depth (1603.09382) in the last layer of the encoder and of the
            decoder, in [0, 1); it rises linearly from 0 in the first.
        label_smoothing (`float`): share of each label spread evenly over the vocabulary in the loss, in [0, 1).
        init_std (`float`, *optional*): standard deviation of the initial weights. `None`: Xavier's uniform
            distribution for the linear maps, d_model ** -0.5 for the embeddings.
        use_cache (`bool`): whether the decoder returns keys and values for the next step, unless told.
        is_decoder (`bool`): set by [`HfTransformerForCausalLM`].
        add_cross_attention (`bool`): whether the decoder of [`HfTransformerForCausalLM`] attends to an encoder.
        cross_attention_hidden_size (`int`, *optional*): width of the output of that encoder. `None`: `d_model`.
        pad_token_id (`int`): fills batches up. As a label it does not count, unless it ends texts too.
        bos_token_id (`int`, *optional*): first token of a text.
        eos_token_id (`int` or `list[int]`): last token of a text.
        decoder_start_token_id (`int`): first token the decoder is given.

    Raises:
        ValueError: if a value is outside its range or does not fit the others.
    """

    model_type = "hf_transformer"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  the Trainer adds to it
    # Names by which the shared layers and transformers' utilities read the fields.
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "attention_probs_dropout_prob": "attention_dropout",
        "qkv_bias": "use_bias",
    }

    vocab_size: int = 32_000
    encoder_vocab_size: int | None = None
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    position_embedding: str = "sinusoidal"
    max_position_embeddings: int = 512
    position_offset: int = 0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    norm_position: str = "post"
    embedding_norm: bool = False
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-5
    use_bias: bool = True
    qk_norm: bool = False
    scale_embedding: bool = True
    share_encoder_decoder_embeddings: bool = True
    tie_word_embeddings: bool = True
    lm_head_bias: bool = False
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.0
    init_std: float | None = None
    use_cache: bool = True
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()})
        self.check()
        super().__post_init__(**kwargs)

    # Two names by which transformers and others ask for sizes. When it builds a cache it asks a decoder's own
    # configuration, which `get_text_config(decoder=True)` makes of an encoder-decoder's.
    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder, or of the decoder if it stands alone."""
        return self.encoder_layers if self.is_encoder_decoder else self.decoder_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        setattr(self, "encoder_layers" if self.is_encoder_decoder else "decoder_layers", value)

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the encoder, or of the decoder if it stands alone."""
        return self.encoder_attention_heads if self.is_encoder_decoder else self.decoder_attention_heads

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        setattr(self, f"{'encoder' if self.is_encoder_decoder else 'decoder'}_attention_heads", value)

    @property
    def ignored_labels(self) -> tuple[int, ...]:
        """Labels that do not count in the loss: -100, and `pad_token_id` unless it ends texts too."""
        eos = self.eos_token_id if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]
        return (-100,) if self.pad_token_id is None or self.pad_token_id in eos else (-100, self.pad_token_id)

    def check(self) -> None:
        """Raise a `ValueError` for the first value that is out of range or does not fit the others. Called at
        construction, and by the models for values that were overridden while loading."""
        self._check_sizes()
        self._check_names()
        self._check_tokens()
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("layer_norm_eps", "init_std"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def _check_sizes(self) -> None:
        sizes = ["vocab_size", "encoder_vocab_size", "d_model", "max_position_embeddings"]
        sizes.append("cross_attention_hidden_size")
        sizes += [f"{stack}_{name}" for stack in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")]
        for name in sizes:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cross_attention_hidden_size is not None and not self.add_cross_attention:
            raise ValueError(
                f"cross_attention_hidden_size needs add_cross_attention=True, got {self.cross_attention_hidden_size}"
            )
        if self.position_offset < 0 or (self.position_offset and self.position_embedding != "learned"):
            wanted = "at least 0" if self.position_offset < 0 else "0 without position_embedding 'learned'"
            raise ValueError(f"position_offset must be {wanted}, got {self.position_offset}")
        for stack in ("encoder", "decoder"):
            layers, heads = getattr(self, f"{stack}_layers"), getattr(self, f"{stack}_attention_heads")
            if layers < 0:
                raise ValueError(f"{stack}_layers must be at least 0, got {layers}")
            if self.d_model % heads:
                raise ValueError(
                    f"d_model must be a multiple of {stack}_attention_heads ({heads}), got {self.d_model}"
                )
            if self.position_embedding == "rope" and self.d_model // heads % 2:
                raise ValueError(
                    f"head size (d_model / {stack}_attention_heads) must be even for position_embedding=rope, "
                    f"got {self.d_model // heads}"
                )
        if self.position_embedding in ("sinusoidal", "relative_xl") and self.d_model % 2:
            raise ValueError(
                f"d_model must be even for position_embedding={self.position_embedding}, got {self.d_model}"
            )
        buckets = self.relative_attention_num_buckets
        if buckets < 4 or buckets % 2:
            raise ValueError(f"relative_attention_num_buckets must be even and at least 4, got {buckets}")
        if self.relative_attention_max_distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance must be above half the buckets ({buckets // 2}), "
                f"got {self.relative_attention_max_distance}"
            )

    def _check_names(self) -> None:
        choices = {
            "position_embedding": POSITION_EMBEDDINGS,
            "norm_position": NORM_POSITIONS,
            "norm_type": NORM_TYPES,
            "activation_function": (*GATED_ACTIVATIONS, *ACT2FN),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_tokens(self) -> None:
        has_both = self.is_encoder_decoder and self.share_encoder_decoder_embeddings
        if has_both and self.encoder_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"encoder_vocab_size must equal vocab_size ({self.vocab_size}) with share_encoder_decoder_embeddings, "
                f"got {self.encoder_vocab_size}"
            )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, (list, tuple)) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(f"{name} must be in [0, {self.vocab_size}), got {value}")


HfTransformerConfig.register_for_auto_class()

__all__ = ["HfTransformerConfig"]
