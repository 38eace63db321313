"""Masks: losses of transformers on the same tensors, and segments that its own post-processing gets wrong."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DetrConfig, MaskFormerImageProcessor
from transformers.loss.loss_for_object_detection import ForSegmentationLoss

from hf_vit import HfDetrConfig, HfDetrForSegmentation, HfDetrImageProcessor
from hf_vit.models.detection_losses import match_objects, read_labels
from hf_vit.models.mask_head import mask_costs, mask_losses
from tests.models.test_detr_model import CORNER, config_of, images, labels_of
from tests.random_weights import randomise


def masks_of(*sizes, shape=(32, 48)):
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.rand(size, *shape, generator=generator) > 0.6 for size in sizes]


def labels_with_masks(*sizes):
    return [{**label, "masks": masks} for label, masks in zip(labels_of(*sizes), masks_of(*sizes))]


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0, 0)])
def test_mask_losses_equal_those_of_transformers(sizes):
    torch.manual_seed(0)
    logits, boxes = torch.randn(3, 6, 4), torch.rand(3, 6, 4) * 0.4 + 0.2
    pred_masks, labels = torch.randn(3, 6, 8, 12), labels_with_masks(*sizes)
    theirs = DetrConfig(num_labels=3, auxiliary_loss=False)
    _, expected, _ = ForSegmentationLoss(logits, labels, "cpu", boxes, pred_masks, theirs)
    config = HfDetrConfig(**CORNER, num_labels=3, class_cost=1, mask_cost=0, dice_cost=0)
    assert mask_costs(pred_masks, [label["masks"] for label in labels], config) is None
    objects = read_labels(labels, 3, 3, needs_masks=True)
    (pairs,) = match_objects(logits[None], boxes[None], objects, config)
    ours = mask_losses(pred_masks, objects.masks, pairs, max(sum(sizes), 1))
    for name, value in ours.items():
        assert abs(value - expected[name]) < 1e-6, name


def test_mask_costs_are_the_losses_of_each_pair():
    torch.manual_seed(0)
    pred_masks, masks = torch.randn(1, 4, 8, 12), masks_of(2, shape=(8, 12))
    config = HfDetrConfig(num_labels=3, mask_cost=2, dice_cost=3)
    costs = mask_costs(pred_masks, masks, config)
    for query in range(4):
        for number in range(2):
            index = torch.tensor([0])
            pairs = SimpleNamespace(images=index, queries=index + query, objects=index + number)
            losses = mask_losses(pred_masks, masks, pairs, 1.0)
            torch.testing.assert_close(costs[0, query, number], 2 * losses["loss_mask"] + 3 * losses["loss_dice"])


def test_a_segmenter_trains_every_weight_and_withstands_half_precision():
    torch.manual_seed(0)
    model = randomise(HfDetrForSegmentation(config_of())).train()
    output = model(images(2), labels=labels_with_masks(3, 0))
    assert output.pred_masks.shape == (2, 6, 16, 24)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    output = model(images(2), labels=labels_with_masks(0, 0))
    assert output.loss.isfinite() and output.loss_dict["loss_mask"] == 0
    model.zero_grad()
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())  # as processes wait for each other's
    half = HfDetrForSegmentation(config_of()).half()
    output = half(images(2).half() * 10, labels=labels_with_masks(3, 1))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in half.parameters())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([torch.ones(1, 4, 4), torch.ones(1, 4, 4)], r"masks of shape \(2, height, width\), got \(1, 4, 4\)"),
        ([torch.ones(2, 4, 4), torch.ones(1, 4, 5)], "masks of one size in a batch"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    labels = [{**label, "masks": mask} for label, mask in zip(labels_of(2, 1), masks)]
    with pytest.raises(ValueError, match=message):
        read_labels(labels, 2, 3, needs_masks=True)


def predicted(scores, labels, masks, num_labels=3):
    """The outputs of a model that is sure of these masks: logits of +-10."""
    logits = torch.full((1, len(scores), num_labels), -20.0)
    for query, (score, label) in enumerate(zip(scores, labels)):
        logits[0, query, label] = torch.logit(torch.tensor(score))
    masks = torch.stack([torch.as_tensor(mask, dtype=torch.float32) for mask in masks])[None] * 20 - 10
    return SimpleNamespace(logits=logits, pred_masks=masks, pred_boxes=torch.rand(1, len(scores), 4))


@pytest.fixture(scope="module")
def processor():
    return HfDetrImageProcessor(num_labels=3, label_ids_to_fuse=[2], size={"height": 32, "width": 32})


def left(columns):
    mask = torch.zeros(8, 8)
    mask[:, :columns] = 1
    return mask


def test_one_segment_does_not_paint_the_whole_image(processor):
    (result,) = processor.post_process_panoptic_segmentation(predicted([0.99], [0], [left(3)]))
    assert (result["segmentation"] == 1).float().equal(left(3))
    assert (result["segmentation"][:, 3:] == -1).all()
    assert [(each["id"], each["label_id"]) for each in result["segments_info"]] == [(1, 0)]


def test_a_low_score_takes_no_pixels_from_its_mask(processor):
    """Times its mask's probability, a score of 0.3 is below the mask's threshold of 0.5 everywhere."""
    outputs = predicted([0.3, 0.9], [0, 1], [left(3), 1 - left(3)])
    (result,) = processor.post_process_panoptic_segmentation(outputs, threshold=0.2)
    assert (result["segmentation"] == 1).float().equal(left(3))
    assert (result["segmentation"] == 2).float().equal(1 - left(3))
    assert [each["score"] for each in result["segments_info"]] == pytest.approx([0.3, 0.9], abs=1e-5)


def test_stuff_is_one_segment_and_its_parts_are_no_rivals(processor):
    """Two queries of one class, each of which alone would be given too small a part of its mask."""
    outputs = predicted([0.9, 0.8, 0.7], [2, 2, 0], [left(4), left(6), 1 - left(6)])
    (result,) = processor.post_process_panoptic_segmentation(outputs)
    assert [(each["label_id"], each["was_fused"]) for each in result["segments_info"]] == [(2, True), (0, False)]
    assert (result["segmentation"] == 1).float().equal(left(6))
    (result,) = processor.post_process_instance_segmentation(outputs)
    assert [each["label_id"] for each in result["segments_info"]] == [2, 0]  # the second is covered by the first
    (result,) = processor.post_process_instance_segmentation(outputs, return_binary_maps=True)
    assert result["segmentation"].float().equal(torch.stack([left(4), left(6), 1 - left(6)]))


def test_nothing_found_is_void_everywhere(processor):
    outputs = predicted([0.1], [0], [left(3)])
    (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(20, 10)])
    assert result["segmentation"].shape == (20, 10) and (result["segmentation"] == -1).all()
    assert result["segments_info"] == []
    (result,) = processor.post_process_instance_segmentation(outputs, return_binary_maps=True, target_sizes=[(20, 10)])
    assert result["segmentation"].shape == (0, 20, 10)


def test_semantic_maps_are_those_of_maskformer(processor):
    torch.manual_seed(0)
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 4), pred_masks=torch.randn(2, 5, 8, 8))
    theirs = SimpleNamespace(class_queries_logits=outputs.logits, masks_queries_logits=outputs.pred_masks)
    expected = MaskFormerImageProcessor().post_process_semantic_segmentation(theirs, target_sizes=[(16, 16)] * 2)
    for ours, other in zip(processor.post_process_semantic_segmentation(outputs, [(16, 16)] * 2), expected):
        assert ours.equal(other)


def test_masks_on_a_stretched_photograph_are_those_of_bilinear_resizing(processor):
    torch.manual_seed(0)
    outputs = predicted([0.9, 0.8, 0.7], [0, 1, 2], [left(1)] * 3)
    outputs.pred_masks = torch.randn(1, 3, 8, 8) * 3
    (result,) = processor.post_process_instance_segmentation(outputs, target_sizes=[(20, 30)], return_binary_maps=True)
    expected = nn.functional.interpolate(outputs.pred_masks, size=(20, 30), mode="bilinear", align_corners=False)
    differs = result["segmentation"] != (expected[0] >= 0)
    assert (expected[0].abs()[differs] < 1e-5).all()  # where rounding decides


def test_masks_of_a_photograph_with_borders_lie_where_its_boxes_do():
    """A photograph twice as wide as high on a square canvas: the mask of its left half."""
    processor = HfDetrImageProcessor(num_labels=3, crop_mode="border", size={"height": 64, "width": 64})
    box = processor.boxes_on_canvas(torch.tensor([[0.0, 0.0, 40.0, 40.0]]), (40, 80))
    mask = torch.zeros(64, 64)
    mask[16:48, :32] = 1
    outputs = predicted([0.9], [0], [mask])
    outputs.pred_boxes = box[None]
    (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(40, 80)])
    ys, xs = (result["segmentation"] == 1).nonzero().T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (0, 39, 0, 39) and len(xs) == 1600
    (detected,) = processor.post_process_object_detection(outputs, target_sizes=[(40, 80)])
    torch.testing.assert_close(detected["boxes"], torch.tensor([[0.0, 0.0, 40.0, 40.0]]))
