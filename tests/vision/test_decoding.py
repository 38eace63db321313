"""Decoded images against Pillow's and against the same picture in 8 bits."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vit import HfViTConfig, HfViTForImageClassification, HfViTImageProcessor
from hf_vit.sample_keys import SampleKey
from hf_vit.tasks.image_classification.augment import (
    AUTO_AUGMENTS,
    AugmentationArguments,
    EvaluationTransform,
    TrainTransform,
)
from hf_vit.vision.decoding import decode, decode_pixels
from hf_vit.vision.processors import InputFormat, normalize

LEVELS = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)


def cell(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_by_their_range_in_every_file(kind):
    deep = Image.fromarray(LEVELS.astype(np.uint16) * 257)
    assert np.array_equal(decode(cell(deep, kind), 0), np.repeat(LEVELS[..., None], 3, axis=2))
    dim = Image.fromarray(LEVELS.astype(np.uint16))  # all below 256: nearly black, whatever else is in the file
    assert np.asarray(decode(cell(dim, kind), 0)).max() == round(int(LEVELS.max()) / 257)


def test_32_bits_are_scaled_by_their_range_and_floats_are_refused():
    deep = Image.fromarray((LEVELS.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32))
    assert np.abs(np.asarray(decode(cell(deep, "TIFF"), 0))[..., 0].astype(int) - LEVELS).max() <= 1
    with pytest.raises(ValueError, match="floating-point"):
        decode(cell(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"), 0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_other_images_are_those_of_pillow(mode):
    image = Image.fromarray(np.stack([LEVELS, LEVELS[::-1], 255 - LEVELS], 2)).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    opened = Image.open(io.BytesIO(cell(image, kind)["bytes"]))
    assert np.array_equal(decode(cell(image, kind), 0), opened.convert("RGB"))
    assert np.array_equal(decode(cell(image, kind), 0, num_channels=1), opened.convert("RGB").convert("L"))


def grey_processor(size, **options):
    return InputFormat(size, [0.3], [0.2], Image.Resampling.BILINEAR, **options).processor()


@pytest.mark.parametrize("crop_ratio", [None, 0.8])
def test_a_grey_model_sees_in_evaluation_what_its_pipeline_sees(crop_ratio):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = HfViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
    model = HfViTForImageClassification(config).eval()
    processor = grey_processor((8, 8), crop_ratio=crop_ratio)
    colours = np.stack([LEVELS, LEVELS[::-1], 255 - LEVELS], axis=2)
    for image in (Image.fromarray(LEVELS), Image.fromarray(colours)):
        pixels = EvaluationTransform(processor)([decode_pixels(cell(image, "PNG"), 0, 1)], [])
        assert pixels.shape == (1, 1, 8, 8)
        with torch.no_grad():
            expected = model(pixel_values=normalize(pixels, processor)).logits.softmax(-1)[0]
        answers = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=3)
        scores = {row["label"]: row["score"] for row in answers}
        assert [scores[model.config.id2label[i]] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_grey_processor_scales_16_bits_and_weighs_colours_as_pillow_does():
    processor = grey_processor((9, 7))
    deep, plain = (
        processor(image)["pixel_values"] for image in map(Image.fromarray, (LEVELS.astype(np.uint16) * 257, LEVELS))
    )
    assert np.array_equal(deep, plain) and np.shape(plain) == (1, 1, 9, 7)
    colours = np.stack([LEVELS, LEVELS[::-1], 255 - LEVELS], axis=2)
    by_pillow = processor(Image.fromarray(colours))["pixel_values"][0]
    by_numbers = processor(torch.from_numpy(colours).permute(2, 0, 1))["pixel_values"][0]
    assert np.abs(np.asarray(by_pillow) - np.asarray(by_numbers)).max() <= 1.01 / 255 / 0.2
    with pytest.raises(ValueError, match="one number each"):
        HfViTImageProcessor(do_convert_grey=True)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        processor(np.zeros((4, 9, 7), np.uint8), input_data_format="channels_first")


@pytest.mark.parametrize("policy", AUTO_AUGMENTS)
def test_every_augmentation_takes_grey_images(policy):
    arguments = AugmentationArguments(
        auto_augment=policy, color_jitter=0.3, random_erasing_prob=1.0, train_crop="random_resized_crop"
    )
    transform = TrainTransform(arguments, grey_processor((8, 8)), seed=0)
    views = transform([torch.from_numpy(LEVELS)[None]] * 20, [SampleKey(0, index, 0) for index in range(20)])
    assert all(view.shape == (1, 8, 8) and view.dtype == torch.uint8 for view in views)
