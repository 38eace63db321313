"""The Vision Transformer (2010.11929, 2012.12877): body, classifier, backbone.

Shapes: B batch, P prefix tokens, N patches, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .checkpoint_conversion import OwnConversionsMixin, rename_heads
from .configuration_hf_vit import HfViTConfig
from .layers import MLP, DropPath, LayerScale, drop_path_rates
from .losses import classification_loss, distilled_loss
from .patch_embedding import PatchEmbedding
from .pooling import AttentionPooling, ClassTokenMeanPooling, Pooler
from .position_encoding import (
    ABSOLUTE_POSITIONS,
    FixedPosition,
    LearnedPosition,
    LearnedRowColumnPosition,
    RelativePositionBias,
    RotaryPosition,
    fill_meta_tables,
)
from .tested_versions import refuse_unknown, say_if_untested

# Standard deviation of a unit normal distribution cut off at two deviations: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
_TRUNCATED_STD = 0.8796256610342398


@dataclass
class HfViTImageClassifierOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`): present if labels were given.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): the prediction; with two heads, their mean.
        class_logits (`torch.Tensor` of shape `(batch, num_labels)`): of the class head, if there are two.
        distillation_logits (`torch.Tensor` of shape `(batch, num_labels)`): of the distillation head, likewise.
        hidden_states (tuple of `torch.Tensor` of shape `(batch, tokens, hidden_size)`): if asked for; the embeddings
            and the output of each layer.
        attentions (tuple of `torch.Tensor` of shape `(batch, heads, tokens, tokens)`): if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class HfViTEmbeddings(nn.Module):
    """(batch, channels, height, width) -> (batch, prefix + rows * columns, hidden_size): patches, absolute positions,
    prefix tokens.

    Raises:
        ValueError: if the images do not fit the model.
    """

    def __init__(self, config):
        super().__init__()
        self.has_prefix_positions = config.has_prefix_positions
        self.patch_embedding = PatchEmbedding(config)
        self.class_token = self._token(config, int(config.use_class_token))
        self.distillation_token = self._token(config, int(config.use_distillation_token))
        self.register_tokens = self._token(config, config.num_register_tokens)
        position = ABSOLUTE_POSITIONS.get(config.position_embedding)
        self.position_embedding = position(config) if position else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @staticmethod
    def _token(config, count: int) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(1, count, config.hidden_size)) if count else None

    def prefix_tokens(self) -> list[torch.Tensor]:
        """Class, distillation and register tokens that exist, in this order, each (1, count, hidden_size)."""
        tokens = (self.class_token, self.distillation_token, self.register_tokens)
        return [token for token in tokens if token is not None]

    def forward(self, pixel_values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values, grid_size)  # (B, N, D)
        positions = self.position_embedding(grid_size) if self.position_embedding else None
        if positions is not None and not self.has_prefix_positions:
            patches = patches + positions
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        tokens = torch.cat([*prefix, patches], dim=1) if prefix else patches  # (B, P + N, D)
        if positions is not None and self.has_prefix_positions:
            tokens = tokens + positions
        return self.dropout(tokens)


class HfViTLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer: attention and MLP, each with layer scale, dropout and drop path on its branch.

    (batch, tokens, hidden_size) -> the same shape
    """

    def __init__(self, config, drop_path_rate: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.layer_scale1, self.layer_scale2 = self._layer_scale(config), self._layer_scale(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    @staticmethod
    def _layer_scale(config) -> nn.Module:
        value = config.layer_scale_init_value
        return nn.Identity() if value is None else LayerScale(config.hidden_size, value)

    def forward(
        self, hidden_states: torch.Tensor, position_bias: torch.Tensor | None = None, **attention_kwargs
    ) -> torch.Tensor:
        branch, _ = self.attention(self.attention_norm(hidden_states), position_bias=position_bias, **attention_kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(self.layer_scale1(branch)))
        branch = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + self.drop_path(self.dropout(self.layer_scale2(branch)))


class HfViTPreTrainedModel(OwnConversionsMixin, PreTrainedModel):
    """Initialisation and capabilities shared by all Vision Transformer models."""

    config: HfViTConfig
    config_class = HfViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("HfViTEmbeddings", "HfViTLayer", "Pooler")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": HfViTLayer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config: HfViTConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        say_if_untested()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            self._init_trunc_normal(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.scale, module.init_value)
        elif isinstance(module, ClassTokenMeanPooling) and module.weight_logit is not None:
            init.constant_(module.weight_logit, module.initial_logit)
        elif isinstance(module, FixedPosition):
            init.copy_(module.table, module.compute_table(module.native_grid_size, module.table.device))
        elif isinstance(module, RelativePositionBias):
            for table in module.parameters():
                init.zeros_(table)
        elif isinstance(module, AttentionPooling):
            # No residual path leads around it: drawn as small as the layers, it would hand on next to nothing, and
            # narrow models would not learn. Its own weights come after those of its parts.
            init.trunc_normal_(module.query, std=module.query.shape[-1] ** -0.5)
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    init.xavier_uniform_(part.weight)
        elif isinstance(module, (HfViTEmbeddings, LearnedPosition, LearnedRowColumnPosition)):
            for parameter in module.parameters(recurse=False):
                self._init_trunc_normal(parameter)

    def _init_trunc_normal(self, parameter: nn.Parameter):
        """Normal distribution cut off at two deviations, widened so that what is left has std `initializer_range`."""
        std = self.config.initializer_range / _TRUNCATED_STD
        init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


class HfViTModel(HfViTPreTrainedModel):
    """The body of the Vision Transformer: patch embedding, prefix tokens, positions, layers, norm, pooling.

    Images of any height and width that are multiples of the patch size are taken; the positions follow them.

    Args:
        config ([`HfViTConfig`]): the configuration.
        add_pooling_layer (`bool`): without it, `pooler_output` is None.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    def __init__(self, config: HfViTConfig, add_pooling_layer: bool = True):
        config.check()
        super().__init__(config)
        self.embeddings = HfViTEmbeddings(config)
        self.rotary_embedding = RotaryPosition(config) if config.position_embedding == "rope_2d" else None
        has_bias = config.position_embedding == "relative_bias"
        self.relative_position_bias = RelativePositionBias(config) if has_bias else None
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([HfViTLayer(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer and config.pooling != "none" else None
        self.register_load_state_dict_post_hook(fill_meta_tables)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, output_attentions: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            output_attentions (`bool`, *optional*): return the attention weights of each layer, by the eager
                implementation whatever the configured one.
            output_hidden_states (`bool`, *optional*): return the embeddings and the output of each layer.

        Returns:
            `last_hidden_state` of shape (batch, tokens, hidden_size), normed unless the norm follows the pooling, and
            `pooler_output` of shape (batch, `config.pooled_size`).

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images do not fit the model.
        """
        refuse_unknown(self, kwargs)
        grid_size = self.embeddings.patch_embedding.grid_size(pixel_values)
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.patch_embedding.dtype), grid_size)
        position_bias = self.relative_position_bias(grid_size) if self.relative_position_bias else None
        attention_kwargs = {
            "rotary_embedding": self.rotary_embedding(grid_size) if self.rotary_embedding else None,
            "output_attentions": self.config.output_attentions if output_attentions is None else output_attentions,
        }
        for layer in self.layers:
            # Gradients reach what is given by position under every kind of gradient checkpointing.
            hidden_states = layer(hidden_states, position_bias, **attention_kwargs)
        if not self.config.norm_after_pooling:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self.norm_pooled(self.pooler(hidden_states)).flatten(1) if self.pooler else None,
        )

    def norm_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply the final norm if it follows the pooling, not the layers: (..., hidden_size) -> the same shape."""
        return self.norm(pooled) if self.config.norm_after_pooling else pooled

    def layer_groups(self) -> list[list[nn.Module]]:
        """Modules from the input up, those of the stem first, then those of each layer; the rest belongs to the
        head."""
        stem = [self.embeddings, self.relative_position_bias]
        return [[module for module in stem if module is not None], *([layer] for layer in self.layers)]


class HfViTForImageClassification(HfViTPreTrainedModel):
    """The Vision Transformer with a linear classifier on the pooled vector and, with a distillation token, a second
    one on that token (DeiT, 2012.12877).

    Raises:
        ValueError: if `config.pooling` is "none".
    """

    # The loss is a mean over the batch: Trainer must divide by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: HfViTConfig):
        if config.pooling == "none":
            raise ValueError("pooling must not be 'none' for image classification")
        if config.problem_type == "single_label_classification" and config.num_labels == 1:
            raise ValueError("problem_type 'single_label_classification' needs num_labels of at least 2, got 1")
        super().__init__(config)
        self.vit = HfViTModel(config)
        self.classifier = self._head(config, config.pooled_size)
        has_two_heads = config.use_distillation_token
        self.distillation_head = self._head(config, config.hidden_size) if has_two_heads else None
        self.register_load_state_dict_pre_hook(rename_heads)
        self.post_init()

    @staticmethod
    def _head(config, size: int) -> nn.Module:
        return nn.Linear(size, config.num_labels) if config.num_labels else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        teacher_logits: torch.Tensor | None = None,
        **kwargs,
    ) -> HfViTImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            labels (`torch.Tensor`, *optional*): what `config.problem_type` asks for. Single-label classification:
                class indices of shape `(batch,)` or distributions of shape `(batch, num_labels)`. Multi-label
                classification: probabilities of shape `(batch, num_labels)`. Regression: values of shape
                `(batch, num_labels)`, or `(batch,)` where there is one label. Without a `problem_type`, one label
                means regression, several a single-label classification.
            teacher_logits (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): a teacher's logits for the same
                images. The loss is then (1 - alpha) * cross entropy of the class head with the labels + alpha *
                distance of the distillation head from the teacher; a model with one head takes it for both.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images, the labels or the teacher's logits do not fit the model, or a teacher comes
                without labels or for a regression.
        """
        if teacher_logits is not None and labels is None:
            raise ValueError("labels must be given with teacher_logits, got None")
        outputs = self.vit(pixel_values, return_dict=True, **kwargs)
        logits, class_logits, distillation_logits = self.classifier(outputs.pooler_output), None, None
        if self.distillation_head is not None:
            token = outputs.last_hidden_state[:, self.config.distillation_token_index]
            class_logits, distillation_logits = logits, self.distillation_head(self.vit.norm_pooled(token))
            logits = (class_logits + distillation_logits) / 2
        return HfViTImageClassifierOutput(
            loss=self._loss(logits, class_logits, distillation_logits, labels, teacher_logits),
            logits=logits,
            class_logits=class_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits, class_logits, distillation_logits, labels, teacher_logits) -> torch.Tensor | None:
        if labels is None:
            return None
        problem_type = self.config.problem_type
        if self.config.num_labels == 0:
            raise ValueError("labels must be None for a model without classes (num_labels=0)")
        if teacher_logits is None:
            return classification_loss(logits, labels, problem_type)
        return distilled_loss(
            logits,
            class_logits,
            distillation_logits,
            labels,
            teacher_logits,
            self.config,
            problem_type=problem_type,
        )


class HfViTBackbone(BackboneMixin, HfViTModel):
    """The Vision Transformer as a backbone: the patch tokens of the stages in `config.out_features`, as grids.

    Stages are `stem` (the embeddings) and `stage1` to `stage{num_hidden_layers}`.
    """

    def __init__(self, config: HfViTConfig):
        super().__init__(config, add_pooling_layer=False)
        self.num_features = [config.hidden_size] * len(config.stage_names)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.

        Returns:
            `feature_maps`: for each stage asked for, a tensor of shape (batch, hidden_size, rows, columns).

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images do not fit the model.
        """
        rows, columns = self.embeddings.patch_embedding.grid_size(pixel_values)
        outputs = HfViTModel.forward(self, pixel_values, return_dict=True, **kwargs)
        feature_maps = []
        for stage, tokens in zip(self.stage_names, outputs.hidden_states):
            if stage in self.out_features:
                tokens = self.norm(tokens) if self.config.apply_layernorm else tokens
                patches = tokens[:, self.config.num_prefix_tokens :].transpose(1, 2)  # (B, D, N)
                feature_maps.append(patches.unflatten(2, (rows, columns)))
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


HfViTModel.register_for_auto_class("AutoModel")
HfViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
HfViTBackbone.register_for_auto_class("AutoBackbone")

__all__ = [
    "HfViTBackbone",
    "HfViTForImageClassification",
    "HfViTImageClassifierOutput",
    "HfViTModel",
    "HfViTPreTrainedModel",
]
