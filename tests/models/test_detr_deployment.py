"""The detection Transformer where it is used: pipelines without the package, graphs, adapters, compiled, learning."""

import numpy as np
import peft
import pytest
import torch
from PIL import Image

from hf_vit import HfDetrForObjectDetection, HfDetrForSegmentation, HfDetrImageProcessor
from hf_vit.isolated.fresh_process import fresh_process
from tests.models.test_detr_masks import labels_with_masks
from tests.models.test_detr_model import CORNER, config_of, images, labels_of
from tests.random_weights import randomise

# What a user of a saved detector may lack.
HIDDEN = ["torchvision", "timm", "peft", "accelerate", "datasets"]
PROGRAM = """
import sys, torch, transformers
from PIL import Image
from transformers import pipeline
sys.modules.update({"scipy": None, "scipy.optimize": None})  # needed in training alone
torch.set_num_threads(1)
photos = [Image.open(path) for path in paths]
detect = pipeline("object-detection", model=folder, trust_remote_code=True)
found = [detect(photo, threshold=0.0) for photo in photos]
batched = detect(photos, threshold=0.0, batch_size=len(photos))
segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
areas = {}
for subtask in ("panoptic", "instance", "semantic"):
    options = {} if subtask == "semantic" else {"threshold": 0.3}
    areas[subtask] = [
        [(each["label"], sum(each["mask"].histogram()[128:]), each["mask"].size) for each in segments]
        for segments in segment(photos, subtask=subtask, batch_size=2, **options)
    ]
loaded = {}
for name in ("AutoModelForInstanceSegmentation", "AutoModelForUniversalSegmentation", "AutoModel"):
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    loaded[name] = type(model).__name__
segment.model.save_pretrained(again)
segment.image_processor.save_pretrained(again)
result = {"found": found, "batched": batched, "areas": areas, "loaded": loaded}
"""


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return randomise(HfDetrForSegmentation(config_of(stuff_class_ids=[2])))


def test_both_pipelines_serve_a_folder_without_the_package(segmenter, tmp_path):
    processor = HfDetrImageProcessor.from_model_config(segmenter.config, crop_mode="border")
    segmenter.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    generator = np.random.default_rng(0)
    photos = [
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8))
        for size in ((40, 30), (30, 70), (8, 9))
    ]
    for number, photo in enumerate(photos):
        photo.save(tmp_path / f"{number}.png")
    variables = {"paths": [str(tmp_path / f"{number}.png") for number in range(3)], "again": str(tmp_path / "again")}
    with fresh_process(hidden=HIDDEN, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as stranger:
        results = stranger.run(PROGRAM, folder=str(tmp_path / "saved"), **variables)
        code = "result = pipeline('object-detection', folder, trust_remote_code=True)(photos[0], threshold=0.0)"
        again = stranger.run(code, folder=str(tmp_path / "again"))
    assert again == results["found"][0]
    assert results["loaded"] == {
        "AutoModelForInstanceSegmentation": "HfDetrForSegmentation",
        "AutoModelForUniversalSegmentation": "HfDetrForSegmentation",
        "AutoModel": "HfDetrModel",
    }
    for photo, found, batched in zip(photos, results["found"], results["batched"]):
        with torch.no_grad():
            outputs = segmenter(**processor(photo, return_tensors="pt"))
        size = [(photo.height, photo.width)]
        (expected,) = processor.post_process_object_detection(outputs, 0.0, size)
        assert [each["label"] for each in found] == [f"LABEL_{label}" for label in expected["labels"]]
        np.testing.assert_allclose([each["score"] for each in found], expected["scores"], atol=1e-5)
        assert [each["box"] for each in found] == [
            dict(zip(("xmin", "ymin", "xmax", "ymax"), box.int().tolist())) for box in expected["boxes"]
        ]
        np.testing.assert_allclose([each["score"] for each in batched], expected["scores"], atol=1e-5)
    for number, photo in enumerate(photos):
        with torch.no_grad():
            outputs = segmenter(**processor(photo, return_tensors="pt"))
        size = [(photo.height, photo.width)]
        (expected,) = processor.post_process_panoptic_segmentation(outputs, 0.3, 0.5, 0.5, target_sizes=size)
        segmentation, info = expected["segmentation"], expected["segments_info"]
        segments = [(f"LABEL_{each['label_id']}", segmentation == each["id"]) for each in info]
        areas = [[label, int(mask.sum()), [photo.width, photo.height]] for label, mask in segments]
        assert results["areas"]["panoptic"][number] == areas
        (semantic,) = processor.post_process_semantic_segmentation(outputs, size)
        assert sum(area for _, area, _ in results["areas"]["semantic"][number]) == semantic.numel()


@pytest.mark.parametrize("fields", [{}, CORNER])
def test_exports_with_a_dynamic_batch(fields):
    torch.manual_seed(0)
    model = randomise(HfDetrForSegmentation(config_of(**fields, decoder_layers=1)))
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (), {"pixel_values": images(2)}, dynamic_shapes=shapes)
    with torch.no_grad():
        got, expected = program.module()(pixel_values=images(5, seed=1)), model(images(5, seed=1))
    for name in ("logits", "pred_boxes", "pred_masks"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_onnx_computes_the_same(segmenter, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, shapes = tmp_path / "model.onnx", ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.onnx.export(segmenter, (images(2),), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    for count in (1, 5):
        with torch.no_grad():
            expected = segmenter(images(count, seed=1))
        logits, boxes, *_, masks = session.run(None, {name: images(count, seed=1).numpy()})
        for got, wanted in ((logits, expected.logits), (boxes, expected.pred_boxes), (masks, expected.pred_masks)):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_adapters_train_and_merge():
    """Positions pass through the adapters of queries and keys as through the layers under them."""
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of()))
    options = {"target_modules": ["qkv_proj", "q_proj", "kv_proj", "fc1"], "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, modules_to_save=["class_labels_classifier"], **options))
    adapted.train()(images(2), labels=labels_of(2, 1)).loss.backward()
    trained = [weight for name, weight in adapted.named_parameters() if "lora_" in name]
    assert trained and all(weight.grad is not None for weight in trained)
    with torch.no_grad():
        expected = adapted.eval()(images(2))
        merged = adapted.merge_and_unload()(images(2))
    torch.testing.assert_close(merged.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = randomise(HfDetrForSegmentation(config_of())).train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(images(2), labels=labels_with_masks(2, 1)).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_autocast_is_finite_and_near():
    torch.manual_seed(0)
    model = HfDetrForSegmentation(config_of()).train()
    expected = model(images(2), labels=labels_with_masks(2, 1)).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(2), labels=labels_with_masks(2, 1)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1)
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def square(generator):
    """A coloured square on grey noise, its class and its box."""
    pixels = 0.1 * torch.rand(3, 32, 48, generator=generator)
    side, label = 12, int(torch.randint(0, 3, (1,), generator=generator))
    y, x = (int(torch.randint(0, limit - side, (1,), generator=generator)) for limit in (32, 48))
    pixels[label, y : y + side, x : x + side] = 1
    pixels = (pixels - 0.1) / 0.3
    box = torch.tensor([[(x + side / 2) / 48, (y + side / 2) / 32, side / 48, side / 32]])
    return pixels, {"class_labels": torch.tensor([label]), "boxes": box}


def test_it_learns_to_find_squares():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    samples = [square(generator) for _ in range(8)]
    pixel_values, labels = torch.stack([pixels for pixels, _ in samples]), [label for _, label in samples]
    model = HfDetrForObjectDetection(config_of(decoder_layers=1, group_detr=1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(130):
        model(pixel_values, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    processor = HfDetrImageProcessor.from_model_config(model.config)
    with torch.no_grad():
        results = processor.post_process_object_detection(model.eval()(pixel_values), 0.0, [(32, 48)] * 8)
    for result, label in zip(results, labels):
        expected = processor.boxes_on_canvas(result["boxes"][:1], (32, 48))
        assert result["labels"][0] == label["class_labels"][0]
        assert (expected - label["boxes"]).abs().max() < 0.06
