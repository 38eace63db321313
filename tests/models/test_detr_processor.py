"""The detector's image processor: canvas, boxes there and back, what predictions mean."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor

from hf_vit import HfDetrImageProcessor
from hf_vit.models.box_ops import center_to_corners
from hf_vit.models.image_processing_hf_detr import median_canvas
from tests.models.test_detr_model import config_of

SIZE = {"height": 96, "width": 160}


def detections(processor, boxes, sizes):
    logits = torch.full((*boxes.shape[:2], 3), 5.0)
    logits[..., 1:] = -9.0
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    return processor.post_process_object_detection(outputs, target_sizes=sizes)


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("image_size", [(100, 37), (33, 200), (96, 160), (1000, 1)])
def test_boxes_go_to_the_canvas_and_back(crop_mode, image_size):
    processor = HfDetrImageProcessor(num_labels=3, size=SIZE, crop_mode=crop_mode)
    height, width = image_size
    boxes = torch.tensor([[0.0, 0.0, width, height], [width * 0.1, height * 0.2, width * 0.4, height * 0.9]])
    (result,) = detections(processor, processor.boxes_on_canvas(boxes, image_size)[None], [image_size])
    assert (result["boxes"] - boxes).abs().max() < 1e-4 * max(1, max(image_size) / 100)


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("image_size", [(50, 90), (90, 50), (20, 200)])
def test_boxes_on_the_canvas_lie_where_the_pixels_went(crop_mode, image_size):
    """A white rectangle on black."""
    pixels = np.zeros((*image_size, 3), np.uint8)
    pixels[5:15, 10:40] = 255
    processor = HfDetrImageProcessor(
        num_labels=3, size=SIZE, crop_mode=crop_mode, resample=0, do_normalize=False, image_mean=[0.0] * 3
    )
    canvas = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0, 0]
    ys, xs = (canvas > 0.5).nonzero().T
    found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    box = processor.boxes_on_canvas(torch.tensor([[10.0, 5.0, 40.0, 15.0]]), image_size)
    expected = center_to_corners(box)[0] * torch.tensor([160, 96, 160, 96])
    assert (found - expected).abs().max() <= 1


def test_a_softmax_head_is_read_as_transformers_reads_it():
    torch.manual_seed(0)
    outputs = SimpleNamespace(logits=torch.randn(2, 6, 4) * 3, pred_boxes=torch.rand(2, 6, 4) * 0.3 + 0.3)
    sizes = torch.tensor([[40, 60], [30, 20]])
    expected = DetrImageProcessor().post_process_object_detection(outputs, 0.3, sizes)
    results = HfDetrImageProcessor(num_labels=3).post_process_object_detection(outputs, 0.3, sizes)
    for ours, theirs in zip(results, expected):
        order = theirs["scores"].argsort(descending=True)
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(ours[name], theirs[name][order])


def test_all_classes_of_a_sigmoid_head_are_kept_and_few_of_them_suffice():
    """The last class is no void; 2 queries of 3 classes are 6 candidates, fewer than COCO's 100."""
    outputs = SimpleNamespace(
        logits=torch.tensor([[[-9.0, -9.0, 3.0], [2.0, -9.0, 1.0]]]), pred_boxes=torch.rand(1, 2, 4)
    )
    processor = HfDetrImageProcessor(num_labels=3)
    (result,) = processor.post_process_object_detection(outputs)
    assert result["labels"].tolist() == [2, 0, 2]
    assert len(processor.post_process_object_detection(outputs, 0.0)[0]["labels"]) == 6
    assert result["boxes"].is_floating_point()
    (half,) = processor.post_process_object_detection(
        SimpleNamespace(logits=outputs.logits.half(), pred_boxes=outputs.pred_boxes.half())
    )
    assert half["boxes"].dtype == half["scores"].dtype == torch.float32


def test_boxes_stay_within_the_photograph():
    processor = HfDetrImageProcessor(num_labels=3)
    (result,) = detections(processor, torch.tensor([[[0.0, 0.5, 0.5, 2.0]]]), [(20, 40)])
    assert result["boxes"].tolist() == [[0.0, 0.0, 10.0, 20.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HfDetrImageProcessor(crop_mode="center"), "crop_mode must be one of squash, border for detection"),
        (lambda: HfDetrImageProcessor(crop_pct=0.9), "crop_pct must be 1 for detection, got 0.9"),
        (
            lambda: detections(HfDetrImageProcessor(), torch.rand(1, 2, 4), None),
            "num_labels must be that of the model",
        ),
        (lambda: detections(HfDetrImageProcessor(num_labels=5), torch.rand(1, 2, 4), None), r"5 classes .* got 3"),
        (
            lambda: detections(HfDetrImageProcessor(num_labels=3, crop_mode="border"), torch.rand(1, 2, 4), None),
            "target_sizes must be given with crop_mode 'border'",
        ),
        (
            lambda: detections(HfDetrImageProcessor(num_labels=3), torch.rand(2, 2, 4), [(1, 1)]),
            "target_sizes must have an entry for each of the 2 images",
        ),
        (lambda: median_canvas([], 1000, 8), "image_sizes must have at least one image"),
        (lambda: median_canvas([(1, 1)], 10, 8), r"num_pixels must be at least 64 \(multiple squared\), got 10"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_canvas_has_the_median_aspect_in_multiples_of_the_patch():
    sizes = [(480, 640)] * 3 + [(1000, 10), (640, 480)]
    height, width = median_canvas(sizes, 320 * 320, 16)
    assert height % 16 == width % 16 == 0
    assert abs(height / width - 0.75) < 0.05 and abs(height * width / 320**2 - 1) < 0.1


def test_a_processor_takes_canvas_classes_and_stuff_from_the_model(tmp_path):
    processor = HfDetrImageProcessor.from_model_config(config_of(stuff_class_ids=[1]))
    processor.save_pretrained(tmp_path)
    loaded = HfDetrImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size["height"], loaded.size["width"]) == (32, 48)
    assert (loaded.num_labels, list(loaded.label_ids_to_fuse)) == (3, [1])
