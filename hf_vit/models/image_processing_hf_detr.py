"""Image processor of the detection Transformer: a fixed canvas, and what its predictions mean on the photograph.

Shapes: B batch, Q queries, C class logits.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from .box_ops import center_to_corners, corners_to_center
from .configuration_hf_detr import HfDetrConfig
from .image_processing_hf_vit import HfViTImageProcessor, centred, resized
from .segment_post_processing import Masks, mask_on_photograph, panoptic_segments

CROP_MODES = ("squash", "border")


def median_canvas(image_sizes: Iterable[tuple[int, int]], num_pixels: int, multiple: int) -> tuple[int, int]:
    """Return the canvas for a set of images: the (height, width) of their median aspect, of about `num_pixels` pixels,
    in multiples of `multiple`.

    Args:
        image_sizes: (height, width) of the images in pixels.
        num_pixels: at least `multiple` squared.
        multiple: the patch size of the backbone.

    Raises:
        ValueError: if there are no images or `num_pixels` is too small.
    """
    aspects = [height / width for height, width in image_sizes]
    if not aspects:
        raise ValueError("image_sizes must have at least one image, got none")
    if num_pixels < multiple**2:
        raise ValueError(f"num_pixels must be at least {multiple**2} (multiple squared), got {num_pixels}")
    aspect = statistics.median(aspects)
    height = max(round((num_pixels * aspect) ** 0.5 / multiple), 1) * multiple
    width = max(round((num_pixels / aspect) ** 0.5 / multiple), 1) * multiple
    return height, width


class HfDetrImageProcessor(HfViTImageProcessor):
    r"""
    Resizes every photograph to one canvas and normalises it; tells boxes and segments of the photograph from what the
    model predicts on the canvas.

    (height, width) of any size -> `pixel_values` of shape (batch, channels, `size["height"]`, `size["width"]`)

    Args:
        size (`dict`): `height` and `width` of the canvas in pixels, multiples of the backbone's patch size.
        crop_mode (`str`): `"squash"`: the photograph is stretched to the canvas. `"border"`: it fits into the canvas,
            its ratio kept, in the middle of borders of the mean colour (letterbox).
        num_labels (`int`, *optional*): of the model whose predictions are read. Predictions of one class more are
            those of a model with a class for no object. Post-processing needs it.
        label_ids_to_fuse (`list[int]`): classes of which an image has one segment at most, see `stuff_class_ids` of
            [`HfDetrConfig`].

    Other arguments are those of [`HfViTImageProcessor`].

    Raises:
        ValueError: if `size` or `crop_mode` is none of these.
    """

    size = {"height": 512, "width": 512}  # noqa: RUF012
    crop_pct = 1.0
    crop_mode = "squash"
    num_labels: int | None = None
    label_ids_to_fuse: Sequence[int] = ()

    def __init__(self, **kwargs: Any):
        for name in ("num_labels", "label_ids_to_fuse"):
            setattr(self, name, kwargs.pop(name, getattr(type(self), name)))
        super().__init__(**kwargs)
        _check(self.crop_pct, self.crop_mode)

    @classmethod
    def from_model_config(cls, config: HfDetrConfig, **kwargs: Any) -> "HfDetrImageProcessor":
        """Return a processor for a model: its classes, its stuff and, unless `size` is given, the image size of its
        backbone."""
        image_size = getattr(config.backbone_config, "image_size", None)
        if image_size is not None:
            height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
            kwargs.setdefault("size", {"height": height, "width": width})
        classes = {"num_labels": config.num_labels, "label_ids_to_fuse": list(config.stuff_class_ids)}
        return cls(**{**classes, **kwargs})

    def _validate_preprocess_kwargs(  # type: ignore[override]  # called with keywords
        self, *, crop_pct: float, crop_mode: str, **kwargs: Any
    ) -> None:
        _check(crop_pct, crop_mode)
        super()._validate_preprocess_kwargs(crop_pct=crop_pct, crop_mode=crop_mode, **kwargs)

    def content_box(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where on the canvas a photograph of (height, width) lies: (left, top, width, height) in parts of the
        canvas."""
        canvas = (self.size["height"], self.size["width"])
        extent = resized(image_size, canvas, self.crop_mode)
        _, rows = centred(extent[0], canvas[0])
        _, columns = centred(extent[1], canvas[1])
        height, width = canvas
        return columns.start / width, rows.start / height, extent[1] / width, extent[0] / height

    def boxes_on_canvas(self, boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Return what the model is to predict for boxes of a photograph: the inverse of what
        `post_process_object_detection` does.

        Args:
            boxes: shape (objects, 4), corners (left, top, right, bottom) in pixels of the photograph.
            image_size: (height, width) of the photograph.

        Returns:
            fp32 (centre x, centre y, width, height) in parts of the canvas, shape (objects, 4).
        """
        left, top, width, height = self.content_box(image_size)
        scale = boxes.new_tensor([width / image_size[1], height / image_size[0]] * 2, dtype=torch.float64)
        offset = boxes.new_tensor([left, top] * 2, dtype=torch.float64)
        return corners_to_center((boxes.double() * scale + offset).float())

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        top_k: int = 100,
    ) -> list[dict[str, torch.Tensor]]:
        """Return the objects of each image, the highest scores first.

        Args:
            outputs: has `logits` of shape (batch, queries, class logits) and `pred_boxes` of shape (batch, queries,
                4).
            threshold: only scores above it are returned, in [0, 1]. 0 for average precision.
            target_sizes: (height, width) of each photograph, whose pixels boxes are then given in. `None`: in parts of
                the canvas.
            top_k: objects of an image at most, as COCO counts them.

        Returns:
            For each image `scores` (objects,), `labels` (objects,) and `boxes` (objects, 4), corners within the
            image, fp32.

        Raises:
            ValueError: if the number of class logits or of sizes does not fit, or sizes are missing where photographs
                have borders.
        """
        boxes = center_to_corners(outputs.pred_boxes)
        sizes = self._target_sizes(target_sizes, len(boxes))
        return [
            {"scores": scores, "labels": labels, "boxes": self._on_photograph(boxes[i, queries], sizes[i])}
            for i, (scores, labels, queries) in enumerate(self._best(outputs.logits, threshold, top_k))
        ]

    def _best(
        self, logits: torch.Tensor, threshold: float, top_k: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Scores, labels and queries of each image's objects, the highest scores first."""
        probabilities = self.class_probabilities(logits)
        num_labels = probabilities.shape[-1]
        # A query may be two objects, where sigmoids say so; a softmax decides.
        decided, labels = probabilities.max(-1)
        has_no_object = logits.shape[-1] > num_labels
        scores = decided if has_no_object else probabilities.flatten(1)
        scores, order = scores.topk(min(top_k, scores.shape[1]), dim=1)
        for i, of_image in enumerate(scores):
            kept = order[i, of_image > threshold]
            queries, classes = (kept, labels[i, kept]) if has_no_object else (kept // num_labels, kept % num_labels)
            yield of_image[of_image > threshold], classes, queries

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Return the class of each pixel: the one with the highest sum, over the queries, of the class's probability
        times the mask's (MaskFormer, 2107.06278).

        Args:
            outputs: has `logits` and `pred_masks` of shape (batch, queries, rows, columns).
            target_sizes: (height, width) of each photograph. `None`: at the resolution of the masks.

        Returns:
            For each image an int64 tensor of shape (height, width).
        """
        probabilities = self.class_probabilities(outputs.logits)
        maps = torch.einsum("bqc,bqhw->bchw", probabilities, outputs.pred_masks.float().sigmoid())
        results = []
        for scores, size in zip(maps, self._target_sizes(target_sizes, len(maps))):
            if size is not None:
                scores = mask_on_photograph(scores, self.content_box(size), size)
            results.append(scores.argmax(0))
        return results

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        return_binary_maps: bool = False,
        top_k: int = 100,
    ) -> list[dict[str, Any]]:
        """Return the instances of each image, as `post_process_panoptic_segmentation` does without fusing any.

        Args:
            return_binary_maps: return in `segmentation` a mask of each object of
                `post_process_object_detection(outputs, threshold, target_sizes, top_k)`, as they are: bool of shape
                (objects, height, width), where masks may overlap. For average precision.
            top_k: objects of an image at most, for `return_binary_maps`.
        """
        if not return_binary_maps:
            thresholds = (threshold, mask_threshold, overlap_mask_area_threshold)
            return self.post_process_panoptic_segmentation(outputs, *thresholds, [], target_sizes)
        results = []
        sizes = self._target_sizes(target_sizes, len(outputs.logits))
        for i, (scores, labels, queries) in enumerate(self._best(outputs.logits, threshold, top_k)):
            masks = [each >= mask_threshold for each in self._masks(outputs, i, queries, sizes[i])]
            size = self._masks(outputs, i, queries, sizes[i]).size
            info = [
                {"id": number, "label_id": int(label), "was_fused": False, "score": float(score)}
                for number, (label, score) in enumerate(zip(labels, scores), start=1)
            ]
            empty = torch.zeros(0, *size, dtype=torch.bool, device=scores.device)
            results.append({"segmentation": torch.stack(masks) if masks else empty, "segments_info": info})
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Iterable[int] | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the segments of each image, no two of which overlap.

        Args:
            outputs: has `logits` and `pred_masks` of shape (batch, queries, rows, columns).
            threshold: queries whose best class scores above it are kept, in [0, 1].
            mask_threshold: probability from which on a mask has a pixel, in (0, 1].
            overlap_mask_area_threshold: part of its mask that a segment must be given, in [0, 1].
            label_ids_to_fuse: classes of which an image has one segment at most; `self.label_ids_to_fuse` unless
                given.
            target_sizes: (height, width) of each photograph. `None`: at the resolution of the masks.

        Returns:
            For each image `segmentation`, int32 of shape (height, width), the id of each pixel's segment, -1 where
            there is none; and `segments_info`, of each segment `id` (from 1), `label_id`, `was_fused` and `score`.
        """
        fuse = self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        best_scores, best_labels = self.class_probabilities(outputs.logits).max(-1)
        results = []
        for i, size in enumerate(self._target_sizes(target_sizes, len(best_scores))):
            queries = (best_scores[i] > threshold).nonzero()[:, 0]
            segmentation, segments = panoptic_segments(
                best_scores[i, queries],
                best_labels[i, queries],
                self._masks(outputs, i, queries, size),
                mask_threshold,
                overlap_mask_area_threshold,
                tuple(fuse),
            )
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    def _masks(self, outputs: Any, image: int, queries: torch.Tensor, size: tuple[int, int] | None) -> Masks:
        content_box = (0.0, 0.0, 1.0, 1.0) if size is None else self.content_box(size)
        return Masks(outputs.pred_masks[image], queries, content_box, size)

    def class_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class: (batch, queries, class logits) -> (batch, queries, num_labels), fp32.

        Raises:
            ValueError: if `num_labels` is not known or the logits are not of such a model.
        """
        if self.num_labels is None:
            raise ValueError(
                "num_labels must be that of the model, got None: see HfDetrImageProcessor.from_model_config"
            )
        if logits.shape[-1] not in (self.num_labels, self.num_labels + 1):
            raise ValueError(
                f"logits must have {self.num_labels} classes (num_labels), or one more, got {logits.shape[-1]}"
            )
        if logits.shape[-1] == self.num_labels:
            return logits.float().sigmoid()
        return logits.float().softmax(-1)[..., :-1]

    def _target_sizes(
        self, target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None, batch_size: int
    ) -> list[tuple[int, int] | None]:
        if target_sizes is None:
            if self.crop_mode == "border":
                raise ValueError("target_sizes must be given with crop_mode 'border', got None")
            return [None] * batch_size
        if len(target_sizes) != batch_size:
            raise ValueError(f"target_sizes must have an entry for each of the {batch_size} images")
        return [(int(height), int(width)) for height, width in target_sizes]

    def _on_photograph(self, corners: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
        """Corners in parts of the canvas in pixels of the photograph, within it: (objects, 4) -> (objects, 4)."""
        if size is None:
            return corners.clamp(0, 1)
        left, top, width, height = self.content_box(size)
        scale = corners.new_tensor([size[1] / width, size[0] / height] * 2)
        inside = (corners - corners.new_tensor([left, top] * 2)) * scale
        return torch.minimum(inside.clamp(min=0), corners.new_tensor([size[1], size[0]] * 2))


def _check(crop_pct: float, crop_mode: str) -> None:
    if crop_pct != 1:
        raise ValueError(f"crop_pct must be 1 for detection, got {crop_pct}")
    if crop_mode not in CROP_MODES:
        raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)} for detection, got {crop_mode!r}")


HfDetrImageProcessor.register_for_auto_class()

__all__ = ["HfDetrImageProcessor", "median_canvas"]
