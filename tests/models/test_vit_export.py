"""The Vision Transformer as a graph of torch.export and of ONNX."""

import numpy as np
import pytest
import torch

from hf_vit.models.vit_checks import POSITION_EMBEDDINGS


def any_size(config):
    """Dynamic shapes of `pixel_values`: any batch, any height and width that are multiples of the patch size."""
    batch, rows, columns = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "rows", "columns"))
    height, width = config.patch_shape
    return {0: batch, 2: height * rows, 3: width * columns}


def images_of_many_sizes(model, images):
    """The native size; larger, smaller, and each on one side alone."""
    (height, width), (rows, columns) = model.config.patch_shape, model.config.grid_size
    for grid in ((0, 0), (1, 3), (2, -1), (-2, 0)):
        yield images(model, 3, (rows + grid[0]) * height, (columns + grid[1]) * width)


def test_exports_with_a_dynamic_batch(model, images):
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (), {"pixel_values": images(model, 2)}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    pixel_values = images(model, 5)
    with torch.no_grad():
        got, expected = program.module()(pixel_values=pixel_values).logits, model(pixel_values).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def check_many_sizes(model, images, **options):
    example, shapes = {"pixel_values": images(model, 2)}, {"pixel_values": any_size(model.config)}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, **options).module()
    for pixel_values in images_of_many_sizes(model, images):
        with torch.no_grad():
            got, expected = program(pixel_values=pixel_values).logits, model(pixel_values).logits
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_embedding", [name for name in POSITION_EMBEDDINGS if name != "none"])
def test_exports_images_of_any_size_from_an_example_of_the_native_one(tiny_model, images, position_embedding):
    model = tiny_model(position_embedding=position_embedding, num_hidden_layers=1)
    check_many_sizes(model, images, strict=position_embedding == "relative_bias")


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_onnx_of_a_trainable_bias_computes_the_same(tiny_model, images, tmp_path, is_dynamic):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_model(position_embedding="relative_bias", num_hidden_layers=1)
    assert model.vit.relative_position_bias.grid.requires_grad
    shapes = {"dynamic_shapes": (any_size(model.config),)} if is_dynamic else {}
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images(model),), path, dynamo=True, verbose=False, **shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    for pixel_values in images_of_many_sizes(model, images) if is_dynamic else [images(model)]:
        with torch.no_grad():
            expected = model(pixel_values).logits
        got = session.run(None, {name: pixel_values.numpy()})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
