"""The detection Transformer (DETR, 2005.12872): body, detector, segmenter.

Shapes: B batch, Q queries, N tokens, D hidden size, C class logits, L layers, G groups.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import CrossAttention, SelfAttention
from .configuration_hf_detr import HfDetrConfig
from .cpu_linear import linear
from .detection_losses import Objects, box_and_class_losses, match_objects, read_labels, weighted_sum
from .detr_decoder import ClassHead, FeatureMix, HfDetrDecoder, Queries, encode_coordinates, token_centers
from .detr_pretrained import HfDetrPreTrainedModel, make_backbone
from .layers import make_norm
from .mask_head import MaskHead, mask_costs, mask_losses
from .matcher import Match
from .tested_versions import refuse_unknown
from .transformer_layer import HfTransformerLayer


@dataclass
class HfDetrModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, queries, d_model)`): of the last decoder layer, normed.
        pred_boxes (`torch.Tensor` of shape `(batch, queries, 4)`): of the last decoder layer.
        feature_map (`torch.Tensor` of shape `(batch, d_model, rows, columns)`): what the decoder looks at.
        intermediate_hidden_states (`torch.Tensor` of shape `(layers, batch, queries, d_model)`): of all layers,
            normed; in training, of all groups.
        intermediate_boxes (`torch.Tensor` of shape `(layers, batch, queries, 4)`): likewise.
        token_logits (`torch.Tensor` of shape `(batch, tokens, class logits)`): by which queries were chosen, with
            `two_stage`.
        token_boxes (`torch.Tensor` of shape `(batch, tokens, 4)`): likewise.
        hidden_states (tuple of `torch.Tensor` of shape `(batch, queries, d_model)`): if asked for; what the decoder
            starts from and the output of each of its layers.
        attentions (tuple of `torch.Tensor` of shape `(batch, heads, queries, queries)`): if asked for; of the
            decoder's self-attention.
        cross_attentions (tuple of `torch.Tensor` of shape `(batch, heads, queries, tokens)`): likewise.
    """

    last_hidden_state: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    feature_map: torch.Tensor | None = None
    intermediate_hidden_states: torch.Tensor | None = None
    intermediate_boxes: torch.Tensor | None = None
    token_logits: torch.Tensor | None = None
    token_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HfDetrObjectDetectionOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`): the weighted sum of `loss_dict`, present if labels were given.
        loss_dict (`dict`): `loss_ce`, `loss_bbox`, `loss_giou` and `cardinality_error` of the last layer; those of
            the layers below with `_0`, `_1`, ... behind, those of the tokens with `_enc`.
        logits (`torch.Tensor` of shape `(batch, queries, class logits)`): `num_labels` of them, and with
            `class_loss="softmax"` one for no object, the last.
        pred_boxes (`torch.Tensor` of shape `(batch, queries, 4)`): (centre x, centre y, width, height) in parts of
            the image.
        auxiliary_outputs (`list[dict]`): `logits` and `pred_boxes` of the layers below the last, present if labels
            were given and `config.auxiliary_loss` is true.
        last_hidden_state (`torch.Tensor` of shape `(batch, queries, d_model)`): of the last decoder layer.
        encoder_last_hidden_state (`torch.Tensor` of shape `(batch, d_model, rows, columns)`): the feature map that
            the decoder looks at.
        decoder_hidden_states, decoder_attentions, cross_attentions: if asked for, see [`HfDetrModelOutput`].
    """

    loss: torch.Tensor | None = None
    loss_dict: dict | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    auxiliary_outputs: list[dict] | None = None
    last_hidden_state: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HfDetrSegmentationOutput(HfDetrObjectDetectionOutput):
    """
    Args:
        pred_masks (`torch.Tensor` of shape `(batch, queries, rows, columns)`): logits of the masks, on the canvas.

    The rest is that of [`HfDetrObjectDetectionOutput`]; `loss_dict` has `loss_mask` and `loss_dice` of the last layer.
    """

    pred_masks: torch.Tensor | None = None


class HfDetrModel(HfDetrPreTrainedModel):
    """The body: backbone, mix of its feature maps, encoder layers if there are any, queries, decoder.

    Args:
        config ([`HfDetrConfig`]): the configuration.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(HfTransformerLayer, layer_name="decoder.layers"),
        "attentions": OutputRecorder(SelfAttention, index=1, layer_name="decoder.layers"),
        "cross_attentions": OutputRecorder(CrossAttention, index=1, layer_name="decoder.layers"),
    }

    def __init__(self, config: HfDetrConfig):
        config.check()
        super().__init__(config)
        self.backbone = make_backbone(config.backbone_config)
        self.feature_mix = FeatureMix(self.backbone.channels, config)
        self.encoder = nn.ModuleList(
            [
                HfTransformerLayer(config, "encoder", i, config.drop_path_rate, has_cross_attention=False)
                for i in range(config.encoder_layers)
            ]
        )
        is_pre_norm = config.norm_position == "pre" and config.encoder_layers > 0
        self.encoder_norm = make_norm(config) if is_pre_norm else nn.Identity()
        self.queries = Queries(config)
        self.decoder = HfDetrDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def layer_groups(self) -> list[list[nn.Module]]:
        """Modules of the backbone from the input up, those of the stem first, then those of each layer; the rest
        belongs to the head."""
        groups = getattr(self.backbone, "layer_groups", None)
        return groups() if groups is not None else [[self.backbone]]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, output_attentions: bool | None = None, **kwargs: Any
    ) -> HfDetrModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images, all of
                one size, wholly filled.
            output_attentions (`bool`, *optional*): return the weights of the decoder's attention, by the eager
                implementation whatever the configured one.
            output_hidden_states (`bool`, *optional*): return the hidden states of the decoder.

        Raises:
            TypeError: if an argument is not known.
            ValueError: if the images do not fit the backbone.
        """
        refuse_unknown(self, kwargs)
        feature_maps = self.backbone(pixel_values, return_dict=True).feature_maps
        tokens, grid_size = self.feature_mix(feature_maps)
        y, x = torch.meshgrid(*token_centers(grid_size, tokens.device), indexing="ij")
        centers = torch.stack((x, y), dim=-1).flatten(0, 1)[None]  # (1, N, 2)
        positions = encode_coordinates(centers, self.config.d_model).to(tokens.dtype)
        for layer in self.encoder:
            tokens = layer(tokens, None, query_position=positions)
        tokens = self.encoder_norm(tokens)
        token_logits, token_boxes, chosen = None, None, None
        if self.config.two_stage:
            token_logits, token_boxes = self.queries.score_tokens(tokens, grid_size)
            chosen = self.queries.best_boxes(token_logits, token_boxes)
        start = self.queries(tokens.shape[0], chosen)
        decoded = self.decoder(*start, tokens, positions, grid_size, bool(output_attentions))
        num_queries = decoded.boxes.shape[2] // start[3]
        return HfDetrModelOutput(
            last_hidden_state=decoded.hidden_states[-1, :, :num_queries],
            pred_boxes=decoded.boxes[-1, :, :num_queries],
            feature_map=tokens.transpose(1, 2).unflatten(2, grid_size),
            intermediate_hidden_states=decoded.hidden_states,
            intermediate_boxes=decoded.boxes,
            token_logits=token_logits,
            token_boxes=token_boxes,
        )


class HfDetrForObjectDetection(HfDetrPreTrainedModel):
    """The detection Transformer with a class head, by set prediction: no anchors by hand, no suppression of
    duplicates.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    # The loss is a mean over the batch's objects: Trainer must divide by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: HfDetrConfig):
        super().__init__(config)
        self.model = HfDetrModel(config)
        self.class_labels_classifier = ClassHead(config.d_model, config.num_class_outputs)
        self.post_init()

    def layer_groups(self) -> list[list[nn.Module]]:
        """See [`HfDetrModel.layer_groups`]."""
        return self.model.layer_groups()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_boxes: torch.Tensor | float | None = None,
        **kwargs: Any,
    ) -> HfDetrObjectDetectionOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, height, width)`): normalised images.
            labels (`list[dict]`, *optional*): for each image, `class_labels` (int64, shape `(objects,)`) and `boxes`
                (shape `(objects, 4)`, (centre x, centre y, width, height) in parts of the image). An image may have
                none.
            num_boxes (`torch.Tensor` or `float`, *optional*): by which sums over objects are divided, so that the
                gradients of several batches or processes add up to those of one; their number in this batch, at least
                1, unless given.

        Raises:
            ImportError: if labels are given and scipy is missing.
            TypeError: if an argument is not known.
            ValueError: if the images or the labels do not fit the model.
        """
        outputs = self.model(pixel_values, return_dict=True, **kwargs)
        return HfDetrObjectDetectionOutput(**self._predictions(outputs, labels, num_boxes))

    def _predictions(
        self,
        outputs: Any,  # an `HfDetrModelOutput`
        labels: list[dict[str, torch.Tensor]] | None,
        num_boxes: torch.Tensor | float | None,
        pred_masks: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Return the fields of [`HfDetrObjectDetectionOutput`]."""
        loss, loss_dict, auxiliary_outputs = None, None, None
        if labels is None:
            logits = linear(self.class_labels_classifier, outputs.last_hidden_state)
        else:
            batch_size, has_masks = len(outputs.pred_boxes), pred_masks is not None
            objects = read_labels(labels, batch_size, int(self.config.num_labels or 0), needs_masks=has_masks)
            all_logits = linear(self.class_labels_classifier, outputs.intermediate_hidden_states)
            logits = all_logits[-1, :, : outputs.last_hidden_state.shape[1]]
            loss_dict = self._losses(outputs, all_logits, objects, num_boxes, pred_masks)
            loss = weighted_sum(loss_dict, self.config)
            auxiliary_outputs = self._auxiliary_outputs(all_logits, outputs)
        return {
            "loss": loss,
            "loss_dict": loss_dict,
            "logits": logits,
            "pred_boxes": outputs.pred_boxes,
            "auxiliary_outputs": auxiliary_outputs,
            "last_hidden_state": outputs.last_hidden_state,
            "encoder_last_hidden_state": outputs.feature_map,
            "decoder_hidden_states": outputs.hidden_states,
            "decoder_attentions": outputs.attentions,
            "cross_attentions": outputs.cross_attentions,
        }

    def _auxiliary_outputs(self, logits: torch.Tensor, outputs: Any) -> list[dict] | None:
        if not self.config.auxiliary_loss:
            return None
        return [{"logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], outputs.intermediate_boxes[:-1])]

    def _losses(
        self,
        outputs: Any,  # an `HfDetrModelOutput`
        logits: torch.Tensor,
        objects: Objects,
        num_boxes: torch.Tensor | float | None,
        pred_masks: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of all layers, of the tokens and, if there are any, of the masks.

        Args:
            logits: of all decoder layers and groups, shape (layers, batch, groups * queries, class logits).
        """
        config, boxes = self.config, outputs.intermediate_boxes
        if not config.auxiliary_loss:
            logits, boxes = logits[-1:], boxes[-1:]
        if num_boxes is None:
            num_boxes = float(max(sum(objects.sizes), 1))
        num_queries = outputs.last_hidden_state.shape[1]
        num_groups = boxes.shape[2] // num_queries
        of_masks = None
        if objects.masks is not None and pred_masks is not None:
            of_masks = mask_costs(pred_masks, objects.masks, config)
        matches = match_objects(logits, boxes, objects, config, num_groups, of_masks)
        losses = {}
        for i in reversed(range(len(matches))):
            of_layer = box_and_class_losses(logits[i], boxes[i], objects, matches[i], config, num_boxes * num_groups)
            ending = "" if i == len(matches) - 1 else f"_{i}"
            losses.update({f"{name}{ending}": value for name, value in of_layer.items()})
        if outputs.token_logits is not None:
            copies = config.token_matches
            token_logits, token_boxes = outputs.token_logits, outputs.token_boxes
            (pairs,) = match_objects(token_logits[None], token_boxes[None], objects, config, num_copies=copies)
            of_tokens = box_and_class_losses(token_logits, token_boxes, objects, pairs, config, num_boxes * copies)
            losses.update({f"{name}_enc": value for name, value in of_tokens.items()})
        if objects.masks is not None and pred_masks is not None:
            in_first_group = matches[-1].queries < num_queries
            pairs = Match(*[each[in_first_group] for each in matches[-1]])
            losses.update(mask_losses(pred_masks, objects.masks, pairs, num_boxes))
        return losses


class HfDetrForSegmentation(HfDetrForObjectDetection):
    """The detector with a mask for each query. What is a thing and what is stuff are classes alike; semantic,
    instance and panoptic segmentation differ in what [`HfDetrImageProcessor`] makes of the masks.

    Raises:
        ValueError: if a value of the configuration is out of range.
    """

    def __init__(self, config: HfDetrConfig):
        super().__init__(config)
        self.mask_head = MaskHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_boxes: torch.Tensor | float | None = None,
        **kwargs: Any,
    ) -> HfDetrSegmentationOutput:
        """
        Args:
            pixel_values, num_boxes: as in [`HfDetrForObjectDetection.forward`].
            labels (`list[dict]`, *optional*): as there, and `masks` of shape `(objects, height, width)` with entries
                in [0, 1] (parts of a pixel), of any one resolution in the batch: the loss is computed at it.

        Raises:
            ImportError: if labels are given and scipy is missing.
            TypeError: if an argument is not known.
            ValueError: if the images or the labels do not fit the model.
        """
        outputs = self.model(pixel_values, return_dict=True, **kwargs)
        pred_masks = self.mask_head(outputs.last_hidden_state, outputs.feature_map)
        predictions = self._predictions(outputs, labels, num_boxes, pred_masks)
        return HfDetrSegmentationOutput(**predictions, pred_masks=pred_masks)


HfDetrModel.register_for_auto_class("AutoModel")
HfDetrForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
HfDetrForSegmentation.register_for_auto_class("AutoModelForImageSegmentation")

__all__ = [
    "HfDetrForObjectDetection",
    "HfDetrForSegmentation",
    "HfDetrModel",
    "HfDetrModelOutput",
    "HfDetrObjectDetectionOutput",
    "HfDetrSegmentationOutput",
]
