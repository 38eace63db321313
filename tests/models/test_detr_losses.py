"""Matching and losses: transformers' own on the same tensors, and what they must withstand."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou as torchvision_iou
from torchvision.ops import generalized_box_iou
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from hf_vit import HfDetrConfig
from hf_vit.models import matcher
from hf_vit.models.box_ops import box_iou, center_to_corners, corners_to_center, refine_boxes
from hf_vit.models.detection_losses import box_and_class_losses, match_objects, read_labels, weighted_sum

NUM_LABELS, NUM_LAYERS, NUM_QUERIES = 5, 3, 12
CORNER = {
    **{"two_stage": False, "with_box_refine": False, "box_relative_bias": False},
    **{"group_detr": 1, "class_loss": "softmax", "class_cost": 1, "num_labels": NUM_LABELS},
}


def random_boxes(*shape):
    return torch.rand(*shape, 4) * 0.5 + 0.1


def random_labels(sizes):
    return [{"class_labels": torch.randint(0, NUM_LABELS, (size,)), "boxes": random_boxes(size)} for size in sizes]


def our_losses(logits, boxes, labels, config, num_groups=1):
    objects = read_labels(labels, len(labels), NUM_LABELS, needs_masks=False)
    matches = match_objects(logits, boxes, objects, config, num_groups)
    losses = {}
    for i, pairs in enumerate(matches):
        count = max(sum(objects.sizes), 1) * num_groups
        of_layer = box_and_class_losses(logits[i], boxes[i], objects, pairs, config, count)
        losses.update({name + ("" if i == len(matches) - 1 else f"_{i}"): v for name, v in of_layer.items()})
    return losses, matches


@pytest.mark.parametrize("sizes", [(3, 0, 5, 2), (0, 0, 0, 0), (15, 1, 0, 2)])
def test_set_prediction_equals_that_of_transformers(sizes):
    """With images without objects, none with any, and one with more than there are queries."""
    torch.manual_seed(sum(sizes))
    logits = torch.randn(NUM_LAYERS, len(sizes), NUM_QUERIES, NUM_LABELS + 1)
    boxes, labels, config = (
        random_boxes(NUM_LAYERS, len(sizes), NUM_QUERIES),
        random_labels(sizes),
        HfDetrConfig(**CORNER),
    )
    theirs = DetrConfig(num_labels=NUM_LABELS, auxiliary_loss=True, decoder_layers=NUM_LAYERS)
    loss, loss_dict, _ = ForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], theirs, logits, boxes)
    ours, matches = our_losses(logits, boxes, labels, config)
    assert ours.keys() == loss_dict.keys()
    for name, value in loss_dict.items():
        assert abs(ours[name] - value) < 1e-6, name
    torch.testing.assert_close(weighted_sum(ours, config), loss, rtol=1e-6, atol=1e-6)
    of_theirs = HungarianMatcher(1, 5, 2)({"logits": logits[-1], "pred_boxes": boxes[-1]}, labels)
    assert matches[-1].queries.tolist() == torch.cat([queries for queries, _ in of_theirs]).tolist()


@pytest.mark.parametrize("class_loss", ["softmax", "iou_aware"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_losses_of_half_precision_and_extreme_predictions_are_finite(class_loss, scale):
    torch.manual_seed(0)
    config = HfDetrConfig(**{**CORNER, "class_loss": class_loss})
    logits = (torch.randn(1, 2, NUM_QUERIES, config.num_class_outputs) * scale).half().requires_grad_()
    boxes = random_boxes(1, 2, NUM_QUERIES)
    boxes[:, :, 0, 2:] = 0.0  # a degenerate prediction
    losses, _ = our_losses(logits, boxes.half().requires_grad_(), random_labels((2, 0)), config)
    loss = weighted_sum(losses, config)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert logits.grad.isfinite().all()


def test_each_group_is_matched_as_if_it_were_alone():
    torch.manual_seed(0)
    config, labels = HfDetrConfig(**{**CORNER, "class_loss": "iou_aware"}), random_labels((3, 1))
    logits, boxes = torch.randn(1, 2, 3 * NUM_QUERIES, NUM_LABELS), random_boxes(1, 2, 3 * NUM_QUERIES)
    together, _ = our_losses(logits, boxes, labels, config, num_groups=3)
    alone = [our_losses(a, b, labels, config)[0] for a, b in zip(logits.chunk(3, 2), boxes.chunk(3, 2))]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(together[name], torch.stack([losses[name] for losses in alone]).mean())


def test_each_object_is_given_as_many_queries_as_asked_for():
    """With one object the cheapest; with more, what scipy gives for each object written down twice."""
    torch.manual_seed(0)
    costs = torch.rand(1, 2, 9, 3)
    (pairs,) = matcher.match(costs, [1, 3], num_copies=2)
    of_first = pairs.queries[pairs.images == 0]
    assert sorted(of_first.tolist()) == sorted(costs[0, 0, :, 0].topk(2, largest=False).indices.tolist())
    queries, columns = linear_sum_assignment(torch.cat([costs[0, 1], costs[0, 1]], dim=1).numpy())
    found = costs[0, 1, pairs.queries[pairs.images == 1], pairs.objects[pairs.images == 1] - 1].sum()
    assert found == pytest.approx(float(torch.cat([costs[0, 1], costs[0, 1]], dim=1)[queries, columns].sum()))
    assert pairs.objects.bincount().tolist() == [2, 2, 2, 2]
    assert len(set(zip(pairs.images.tolist(), pairs.queries.tolist()))) == 8


def test_a_prediction_that_is_not_finite_is_taken_last():
    costs = torch.tensor([[[[torch.nan, 1.0], [0.5, torch.inf], [0.2, 0.3]]]])
    (pairs,) = matcher.match(costs, [2])
    assert sorted(zip(pairs.queries.tolist(), pairs.objects.tolist())) == [(1, 0), (2, 1)]


def test_the_iou_aware_target_is_where_the_gradient_vanishes():
    """Binary cross entropy has its minimum at the target: the geometric mean of score and IoU."""
    config = HfDetrConfig(**{**CORNER, "class_loss": "iou_aware", "num_labels": 1})
    box, other = torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    labels = [{"class_labels": torch.tensor([0]), "boxes": other}]
    # score^0.25 * 0.5^0.75 = score, where score = iou = 0.5
    logits = torch.zeros(1, 1, 1, 1, requires_grad=True)
    losses, _ = our_losses(logits, box[None, None], labels, config)
    losses["loss_ce"].backward()
    assert abs(logits.grad).max() < 1e-6


def test_box_overlaps_equal_those_of_torchvision():
    torch.manual_seed(0)
    first, second = center_to_corners(random_boxes(20)), center_to_corners(random_boxes(30))
    iou, giou = box_iou(first[:, None], second)
    torch.testing.assert_close(iou, torchvision_iou(first, second))
    torch.testing.assert_close(giou, generalized_box_iou(first, second))
    torch.testing.assert_close(center_to_corners(corners_to_center(first)), first)


def test_boxes_are_refined_in_units_of_their_own_size():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.2, 0.2, 0.4, 0.2]])
    deltas = torch.tensor([0.5, -1.0, math.log(2), math.log(0.5)])
    expected = torch.tensor([[0.6, 0.4, 0.4, 0.05], [0.4, 0.0, 0.8, 0.1]])
    torch.testing.assert_close(refine_boxes(boxes, deltas), expected)
    assert refine_boxes(boxes, torch.full((4,), 1e4)).isfinite().all()


def test_training_without_scipy_says_so(monkeypatch):
    monkeypatch.setattr(matcher, "linear_sum_assignment", None)
    with pytest.raises(ImportError, match="scipy, which is not installed"):
        matcher.match(torch.zeros(1, 1, 2, 1), [1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels must have an entry for each of the 1 images, got 0"),
        ([{"class_labels": torch.tensor([0])}], "labels must have boxes, got class_labels"),
        (
            [{"class_labels": torch.tensor([0]), "boxes": torch.zeros(2, 4)}],
            r"boxes of shape \(objects, 4\), got \(1,\) and \(2, 4\)",
        ),
        ([{"class_labels": torch.tensor([5]), "boxes": random_boxes(1)}], r"class_labels must be in \[0, 5\), got 5"),
        (
            [{"class_labels": torch.tensor([-1]), "boxes": random_boxes(1)}],
            r"must be in \[0, 5\), got -1",
        ),
        ([{"class_labels": torch.tensor([0]), "boxes": random_boxes(1) * 100}], "boxes must be finite .* in parts of"),
        ([{"class_labels": torch.tensor([0]), "boxes": -random_boxes(1)}], "boxes must be finite .* in parts of"),
        ([{"class_labels": torch.tensor([0]), "boxes": random_boxes(1) * torch.nan}], "boxes must be finite"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        read_labels(labels, 1, NUM_LABELS, needs_masks=False)
