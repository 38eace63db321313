"""Other classes, sizes, patches and channels on the way."""

import pytest
import timm
import torch
from PIL import Image
from random_weights import randomise
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv, save_for_hf
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit.conversion.convert import convert
from hf_vit.conversion.models import Changes, from_peer
from hf_vit.conversion.resize import adapt_channels, resample_kernel

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 3}


@pytest.fixture(scope="module")
def peer():
    return randomise(timm.create_model("vit_tiny_patch16_224", **SIZES))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (4, 4), (6, 12), (10, 7)], ids=str)
def test_kernels_are_resampled_as_by_timm(size):
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_patch_embed(kernel, list(size))
    torch.testing.assert_close(resample_kernel(kernel, size), expected, atol=1e-4, rtol=1e-4)


def test_a_larger_patch_gives_the_tokens_of_the_smaller():
    """The promise of the pseudo-inverse: the token of a resized patch is that of the patch."""
    generator = torch.Generator().manual_seed(0)
    kernel, patch = torch.randn(5, 3, 4, 4, generator=generator), torch.randn(1, 3, 4, 4, generator=generator)
    larger = torch.nn.functional.interpolate(patch, size=(8, 12), mode="bicubic", antialias=True)
    expected = torch.nn.functional.conv2d(patch, kernel)
    got = torch.nn.functional.conv2d(larger, resample_kernel(kernel, (8, 12)))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_channels_change_as_in_timm(channels):
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = adapt_input_conv(channels, kernel.clone())
    torch.testing.assert_close(adapt_channels(kernel, channels), expected)


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (32, 24)], ids=str)
def test_positions_follow_the_image(peer, size):
    other = timm.create_model("vit_tiny_patch16_224", **{**SIZES, "img_size": size})
    weights = timm.models.vision_transformer.checkpoint_filter_fn(peer.state_dict(), other)
    other.load_state_dict(weights)
    ours = from_peer(peer, changes=Changes(image_size=size))
    assert ours.config.image_shape == size and ours.vit.embeddings.position_embedding.grid.shape[:2] == (
        size[0] // 8,
        size[1] // 8,
    )
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixel_values).logits, other.eval()(pixel_values), atol=1e-4, rtol=1e-4)


def test_patches_and_channels_together_as_in_timm(peer):
    changes = Changes(image_size=(32, 24), patch_size=(4, 4), num_channels=4)
    options = {"img_size": (32, 24), "patch_size": 4, "in_chans": 4}
    other = timm.create_model("vit_tiny_patch16_224", **{**SIZES, **options})
    weights = dict(peer.state_dict())
    weights["patch_embed.proj.weight"] = adapt_input_conv(4, weights["patch_embed.proj.weight"])
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(weights, other))
    pixel_values = torch.randn(2, 4, 32, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = other.eval()(pixel_values), from_peer(peer, changes=changes)(pixel_values).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_folder_with_a_new_head_and_its_processor(peer, tmp_path):
    save_for_hf(peer, tmp_path / "peer", model_args=SIZES)
    convert(tmp_path / "peer", tmp_path / "ours", changes=Changes(7, (48, 64), None, 1))
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert ours.config.num_labels == 7 and ours.classifier.weight.shape == (7, 24)
    torch.testing.assert_close(ours.vit.norm.weight, peer.norm.weight)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    pixel_values = processor(torch.zeros(3, 90, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 1, 48, 64)
    with torch.no_grad():
        assert ours(pixel_values).logits.shape == (1, 7)
    # Ours changes likewise.
    convert(tmp_path / "ours", tmp_path / "again", changes=Changes(num_labels=2))
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    assert again.config.num_labels == 2
    torch.testing.assert_close(again.vit.norm.weight, peer.norm.weight)


@pytest.mark.parametrize("channels", [4, 13])
def test_a_folder_for_images_of_many_channels(peer, tmp_path, channels):
    """Their mean and deviation are the three in turn, as the kernels are."""
    save_for_hf(peer, tmp_path / "peer", model_args=SIZES)
    convert(tmp_path / "peer", tmp_path / "ours", changes=Changes(num_channels=channels))
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert len(processor.image_mean) == len(processor.image_std) == channels
    image = torch.randint(256, (channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"return_tensors": "pt", "input_data_format": "channels_first"}
    pixel_values = processor(image.numpy(), **options)["pixel_values"]
    form = {**timm.data.resolve_model_data_config(peer), "input_size": (1, 32, 32), "crop_pct": processor.crop_pct}
    for i in range(channels):  # each as timm makes it of a picture of this channel alone
        form |= {"mean": (processor.image_mean[i],), "std": (processor.image_std[i],)}
        expected = timm.data.create_transform(**form)(Image.fromarray(image[i].numpy()))
        torch.testing.assert_close(pixel_values[0, i], expected[0], atol=1e-5, rtol=1e-5)
    kernel = adapt_input_conv(channels, peer.patch_embed.proj.weight.detach().clone())
    found = ours.vit.embeddings.patch_embedding.projection.weight
    torch.testing.assert_close(found.detach(), kernel.flatten(1))
    with torch.no_grad():
        assert ours(pixel_values).logits.isfinite().all()


def test_changes_that_do_not_fit_are_refused(peer, tmp_path):
    with pytest.raises(ValueError, match=r"image_size must be a multiple of patch_size \(\[8, 8\]\), got \[30, 30\]"):
        from_peer(peer, changes=Changes(image_size=(30, 30)))
    with pytest.raises(ValueError, match="num_labels must be at least 1, got 0"):
        from_peer(peer, changes=Changes(num_labels=0))
