"""The Vision Transformer (2010.11929, 2012.12877): body, classifier, backbone.

Shapes: B batch, P prefix tokens, N patches, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_conversion import rename_heads
from .configuration_hf_vit import HfViTConfig
from .layers import drop_path_rates, make_norm
from .losses import classification_loss, distilled_loss, token_labeling_loss
from .pooling import Pooler
from .position_encoding import ROTARY_POSITIONS, RelativePositionBias, fill_meta_tables
from .tested_versions import refuse_unknown
from .token_reduction import TokenGroups, token_reductions, ungrouped
from .token_schedule import token_reduction
from .vit_embeddings import HfViTEmbeddings
from .vit_layer import HfViTClassLayer, HfViTLayer
from .vit_outputs import HfViTImageClassifierOutput, HfViTModelOutput
from .vit_pretrained import HfViTPreTrainedModel
from .vit_tokens import PatchDropout, of_kept_pairs, of_kept_tokens


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
        rotary_position = ROTARY_POSITIONS.get(config.rotary_position or "none")
        self.rotary_embedding = rotary_position(config) if rotary_position else None
        has_bias = "relative_bias" in config.position_embeddings
        self.relative_position_bias = RelativePositionBias(config) if has_bias else None
        self.patch_dropout = PatchDropout(config.patch_dropout_prob, config.num_layer_prefix_tokens)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([HfViTLayer(config, rate) for rate in rates])
        self.class_layers = nn.ModuleList([HfViTClassLayer(config) for _ in range(config.num_class_layers)])
        self.norm = nn.Identity() if config.pooling_norm == "none" else make_norm(config)
        self.pooler = Pooler(config) if add_pooling_layer and config.pooling != "none" else None
        self.register_load_state_dict_post_hook(fill_meta_tables)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        mixtoken_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> HfViTModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            mixtoken_mask (`torch.Tensor` of shape `(patches,)`, *optional*): bool; where it is true, the embedded
                patches of each image give way to those of the image before it in the batch (MixToken, 2104.10858).
            output_attentions (`bool`, *optional*): return the attention weights of each layer, by the eager
                implementation whatever the configured one.
            output_hidden_states (`bool`, *optional*): return the embeddings and the output of each layer; those of
                class-attention layers are in `last_hidden_state` alone.

        Returns:
            `last_hidden_state` of shape (batch, tokens, hidden_size), normed unless the norm follows the pooling, and
            `pooler_output` of shape (batch, `config.pooled_size`); where tokens are merged or pruned, `token_groups`.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images do not fit the model.
        """
        grid_size = self.embeddings.patch_embedding.grid_size(pixel_values)
        return self._encode(pixel_values, grid_size, mixtoken_mask, output_attentions, **kwargs)

    def _encode(
        self,
        pixel_values: torch.Tensor,
        grid_size: tuple[int, int],
        mixtoken_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> HfViTModelOutput:
        """`forward` of images whose (rows, columns) of patches are known."""
        refuse_unknown(self, kwargs)
        pixel_values = pixel_values.to(self.embeddings.patch_embedding.dtype)
        hidden_states = self.embeddings(pixel_values, grid_size, mixtoken_mask)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states, steps = self._through_layers(hidden_states, grid_size, output_attentions)
        sizes = steps[-1].sizes if steps else None
        if self.class_layers:
            class_tokens = self.embeddings.class_tokens().expand(hidden_states.shape[0], -1, -1)
            for layer in self.class_layers:
                class_tokens = layer(class_tokens, hidden_states, output_attentions, sizes)
            hidden_states = torch.cat((class_tokens, hidden_states), dim=1)
        if not self.config.norm_after_pooling:
            hidden_states = self.norm(hidden_states)
        pooled = None
        if self.pooler is not None:
            sizes = None if sizes is None else sizes[:, self.config.num_layer_prefix_tokens :]  # of the patches
            pooled = self.norm_pooled(self.pooler(hidden_states, sizes)).flatten(1)
        return HfViTModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            token_groups=tuple(groups.group for groups in steps) if steps else None,
        )

    def _through_layers(
        self, hidden_states: torch.Tensor, grid_size: tuple[int, int], output_attentions: bool
    ) -> tuple[torch.Tensor, list[TokenGroups]]:
        """(batch, tokens, hidden_size) -> the same or, with the groups after each layer, fewer tokens."""
        num_tokens = hidden_states.shape[1]
        hidden_states, kept = self.patch_dropout(hidden_states)
        position_bias, rotary_embedding = None, None
        if self.relative_position_bias is not None:
            position_bias = self.relative_position_bias(grid_size)
        if self.rotary_embedding is not None:
            rotary_embedding = self.rotary_embedding(grid_size)
        options = {"grid_size": grid_size, "output_attentions": output_attentions}
        # Gradients reach what is given by position under every kind of gradient checkpointing.
        if token_reduction(self.config) is None:
            position_bias = None if position_bias is None else of_kept_pairs(position_bias, kept)
            rotary_embedding = None if rotary_embedding is None else of_kept_tokens(rotary_embedding, kept)
            for layer in self.layers:
                hidden_states = layer(
                    hidden_states, position_bias, rotary_embedding=rotary_embedding, kept=kept, **options
                )
            return hidden_states, []
        steps = [TokenGroups.whole(hidden_states, num_tokens, kept)]
        num_patches = hidden_states.shape[1] - self.config.num_layer_prefix_tokens
        for layer, reduction in zip(self.layers, token_reductions(self.config, num_patches)):
            hidden_states, *groups = layer(
                hidden_states,
                position_bias,
                rotary_embedding=rotary_embedding,
                groups=steps[-1],
                reduction=reduction,
                **options,
            )
            steps.append(TokenGroups(*groups))
        return hidden_states, steps

    def norm_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply the final norm if it follows the pooling, not the layers: (..., hidden_size) -> the same shape."""
        return self.norm(pooled) if self.config.norm_after_pooling else pooled

    def layer_groups(self) -> list[list[nn.Module]]:
        """Modules from the input up, those of the stem first, then those of each layer; the rest belongs to the
        head."""
        stem = [self.embeddings, self.relative_position_bias]
        layers = (*self.layers, *self.class_layers)
        return [[module for module in stem if module is not None], *([layer] for layer in layers)]


class HfViTForImageClassification(HfViTPreTrainedModel):
    """The Vision Transformer with a linear classifier on the pooled vector; with a distillation token, a second one
    on that token (DeiT, 2012.12877); with `config.use_token_labeling_head`, one on each patch (2104.10858).

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
        self.token_labeling_head = self._head(config, config.hidden_size) if config.use_token_labeling_head else None
        self.register_load_state_dict_pre_hook(rename_heads)
        self.post_init()

    @staticmethod
    def _head(config: Any, size: int) -> nn.Module:
        return nn.Linear(size, config.num_labels) if config.num_labels else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        teacher_logits: torch.Tensor | None = None,
        **kwargs: Any,
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
            token_labels (`torch.Tensor` of shape `(batch, patches, num_labels)`, *optional*): a distribution over the
                classes for each patch, or zeros for one without a label. `config.token_labeling_weight` times the
                cross entropy of the patches, averaged over those with a label, is added to the loss.
            mixtoken_mask (`torch.Tensor` of shape `(patches,)`, *optional*): see [`HfViTModel`]; the labels are to be
                mixed likewise.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images, the labels or the teacher's logits do not fit the model, or a teacher or labels
                of patches come without labels or for a regression.
        """
        # Trainer evaluates no metrics where one of all arguments is missing that have "label" in their names.
        token_labels = kwargs.pop("token_labels", None)
        for name, given in (("teacher_logits", teacher_logits), ("token_labels", token_labels)):
            if given is not None and labels is None:
                raise ValueError(f"labels must be given with {name}, got None")
        outputs = self.vit(pixel_values, return_dict=True, **kwargs)
        logits, class_logits, distillation_logits = self.classifier(outputs.pooler_output), None, None
        if self.distillation_head is not None:
            token = outputs.last_hidden_state[:, self.config.distillation_token_index]
            class_logits, distillation_logits = logits, self.distillation_head(self.vit.norm_pooled(token))
            logits = (class_logits + distillation_logits) / 2
        token_logits = None
        if self.token_labeling_head is not None:
            patches = outputs.last_hidden_state[:, self.config.num_prefix_tokens :]
            if outputs.token_groups is not None:
                first = self.config.num_layer_prefix_tokens
                patches = ungrouped(patches, outputs.token_groups[-1][:, first:] - first)
            token_logits = self.token_labeling_head(self.vit.norm_pooled(patches))
        loss = self._loss(logits, class_logits, distillation_logits, labels, teacher_logits)
        if token_labels is not None and loss is not None:
            loss = loss + self.config.token_labeling_weight * self._token_labeling_loss(token_logits, token_labels)
        return HfViTImageClassifierOutput(
            loss=loss,
            logits=logits,
            class_logits=class_logits,
            distillation_logits=distillation_logits,
            token_logits=token_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_groups=outputs.token_groups,
        )

    def _loss(
        self,
        logits: torch.Tensor,
        class_logits: torch.Tensor | None,
        distillation_logits: torch.Tensor | None,
        labels: torch.Tensor | None,
        teacher_logits: torch.Tensor | None,
    ) -> torch.Tensor | None:
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

    def _token_labeling_loss(self, token_logits: torch.Tensor | None, token_labels: torch.Tensor) -> torch.Tensor:
        if token_logits is None:
            raise ValueError("token_labels must be None without config.use_token_labeling_head")
        if self.config.problem_type not in (None, "single_label_classification") or self.config.num_labels == 1:
            raise ValueError(
                f"token_labels must be None unless the classes exclude each other, got problem_type "
                f"{self.config.problem_type!r} and num_labels {self.config.num_labels}"
            )
        return token_labeling_loss(token_logits, token_labels)


class HfViTBackbone(BackboneMixin, HfViTModel):
    """The Vision Transformer as a backbone: the patch tokens of the stages in `config.out_features`, as grids.

    Stages are `stem` (the embeddings) and `stage1` to `stage{num_hidden_layers}`; class-attention layers and their
    tokens are left out.
    """

    def __init__(self, config: HfViTConfig):
        super().__init__(config, add_pooling_layer=False)
        self.patch_dropout = PatchDropout(0.0, config.num_layer_prefix_tokens)  # a grid has no gaps
        if config.num_class_layers:  # the patches never see what comes after them
            self.class_layers = nn.ModuleList()
            self.embeddings.class_token, self.embeddings.distillation_token = None, None
        self.num_features = [config.hidden_size] * len(config.stage_names)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def _encode_and_capture(
        self, pixel_values: torch.Tensor, grid_size: tuple[int, int], **kwargs: Any
    ) -> HfViTModelOutput:
        return self._encode(pixel_values, grid_size, **kwargs)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.

        Returns:
            `feature_maps`: for each stage asked for, a tensor of shape (batch, hidden_size, rows, columns); patches
            that were merged have the same features.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images do not fit the model.
        """
        grid_size = self.embeddings.patch_embedding.grid_size(pixel_values)
        outputs = self._encode_and_capture(pixel_values, grid_size, return_dict=True, **kwargs)
        feature_maps = []
        for stage, tokens in zip(self.stage_names, outputs.hidden_states):
            if stage in self.out_features:
                tokens = self.norm(tokens) if self.config.apply_layernorm else tokens
                if outputs.token_groups is not None:
                    tokens = ungrouped(tokens, outputs.token_groups[self.stage_names.index(stage)])
                patches = tokens[:, self.config.num_layer_prefix_tokens :].transpose(1, 2)  # (B, D, N)
                feature_maps.append(patches.unflatten(2, grid_size))
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
