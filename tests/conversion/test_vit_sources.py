"""Encoders of every family that is converted: logits and every layer's features equal the peer's, there and back."""

import pytest
import timm
import torch
import transformers
from PIL import Image
from random_weights import randomise
from timm.models.beit import Beit
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfDetrForObjectDetection, HfViTBackbone, HfViTForImageClassification, HfViTModel
from hf_vit.conversion.convert import convert
from hf_vit.conversion.models import Changes, from_peer, to_peer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
FULL = {**SIZES, "intermediate_size": 48}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
BIASES = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def make(name, **options):
    """A random model of transformers by its class, with the options of its configuration."""
    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    has_towers = "vision_config" in getattr(config_class, "sub_configs", {})
    if has_towers:
        options = {"vision_config": options, "text_config": TEXT}
    labels = {"num_labels": 5} if name.endswith("Classification") else {}
    return randomise(model_class(config_class(**options, **labels)))


def images(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def answers(peer, pixel_values):
    """Outputs of a peer for images: with every layer's features, and for SigLIP 2 of their patches."""
    if "Siglip2" in type(peer).__name__:
        patches = pixel_values.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 3, 5, 1)
        arguments = {
            "pixel_values": patches.flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(len(patches), 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * len(patches)),
        }
    else:
        arguments = {"pixel_values": pixel_values}
    if type(peer).__name__ == "ViTMAEModel":  # all patches, in their order
        peer.config.mask_ratio = 0.0
        arguments["noise"] = torch.arange(16.0).expand(len(pixel_values), -1)
    return peer(**arguments, output_hidden_states=True)


def assert_close(got, expected, tolerance=1e-5):
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(got / scale, expected / scale, atol=tolerance, rtol=0)


TRANSFORMERS = {
    "Dinov2ForImageClassification": {**SIZES, "mlp_ratio": 2},
    "Dinov2Model": {**SIZES, "mlp_ratio": 3, "use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": {**SIZES, "mlp_ratio": 2},
    "Dinov2WithRegistersModel": {**SIZES, "mlp_ratio": 2, "num_register_tokens": 2},
    "DINOv3ViTModel": {**FULL, "num_register_tokens": 2},
    "DINOv3ViTModel gated": {
        **FULL,
        **{"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True, "mlp_bias": False, "proj_bias": False},
    },
    "BeitForImageClassification": {**FULL, **BIASES, "use_absolute_position_embeddings": True},
    "BeitForImageClassification plain": {**FULL, "use_mean_pooling": False, "layer_scale_init_value": 0.0},
    "BeitModel": {**FULL, "use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {**FULL, **BIASES},
    "SiglipVisionModel": FULL,
    "SiglipVisionModel cropped": {**FULL, "image_size": 35},
    "SiglipForImageClassification": FULL,
    "Siglip2VisionModel": {**{k: v for k, v in FULL.items() if k != "image_size"}, "num_patches": 16},
    "Siglip2ForImageClassification": {**{k: v for k, v in FULL.items() if k != "image_size"}, "num_patches": 16},
    "CLIPVisionModel": FULL,
    "CLIPForImageClassification": FULL,
    "ViTModel": FULL,
    "DeiTModel": FULL,
    "ViTMAEModel": FULL,
    "ViTMSNForImageClassification": FULL,
    "ViTMSNModel": FULL,
}


@pytest.mark.parametrize(
    "size,channels,classes", [(160, 1, 1000), (224, 4, 2), ((256, 192), 4, 1000), (384, 1, 2)], ids=str
)
def test_photograph_sizes_channels_and_class_counts(size, channels, classes):
    """Images as large as in use, other numbers of channels and classes, of both libraries."""
    narrow = {"embed_dim": 8, "depth": 1, "num_heads": 2, "img_size": size, "in_chans": channels}
    peer = randomise(timm.create_model("vit_tiny_patch16_224", **narrow, num_classes=classes))
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config |= {"image_size": size, "num_channels": channels, "num_labels": classes}
    other = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**config)))
    for model, library in ((peer, "timm"), (other, "transformers")):
        ours = from_peer(model)
        height, width = ours.config.image_shape
        assert (height, width) == (size if isinstance(size, tuple) else (size, size))
        pixel_values = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, back = model(pixel_values), to_peer(ours, library)(pixel_values)
            got = ours(pixel_values).logits
        if library == "transformers":
            expected, back = expected.logits, back.logits
        assert got.shape == (2, classes) and expected.std() > 0.02
        assert_close(got, expected)
        assert torch.equal(back, expected)


@pytest.mark.parametrize("name", ["ViTModel", "DeiTModel"])
def test_a_pooler_comes_along_both_ways(name):
    peer, pixel_values = make(name, **FULL), images()
    ours = from_peer(peer)
    back = to_peer(ours, "transformers")
    with torch.no_grad():
        expected = peer(pixel_values).pooler_output
        assert expected.std() > 0.05
        assert_close(ours(pixel_values).pooler_output, expected)
        assert torch.equal(back(pixel_values).pooler_output, expected)


@pytest.mark.parametrize("option", [{"pooler_act": "relu"}, {"pooler_output_size": 16}], ids=str)
def test_other_poolers_are_refused_by_name(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be"):
        from_peer(make("ViTModel", **FULL, **option))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_families_of_transformers(name):
    peer = make(name.split()[0], **TRANSFORMERS[name])
    ours = from_peer(peer)
    pixel_values = images(*ours.config.image_shape)
    has_head = name.split()[0].endswith("Classification")
    assert type(ours) is (HfViTForImageClassification if has_head else HfViTModel)
    with torch.no_grad():
        expected, got = answers(peer, pixel_values), ours(pixel_values, output_hidden_states=True)
        for field in ("logits", "pooler_output", "last_hidden_state"):
            if getattr(expected, field, None) is not None and getattr(got, field, None) is not None:
                assert_close(getattr(got, field), getattr(expected, field))
        assert len(got.hidden_states) == len(expected.hidden_states) == 3
        for states, peer_states in zip(got.hidden_states, expected.hidden_states):
            assert_close(states, peer_states)
        back = to_peer(ours, "transformers")
        again = answers(back, pixel_values)
        assert_close(again[0], expected[0])
        half = ours.bfloat16()(pixel_values.bfloat16())[0].float()
        assert_close(half, expected[0], tolerance=2e-2 if has_head else 5e-2)


SQUARE = {"height": 32, "width": 32}
WHOLE = {  # checkpoints as they are published, the processors beside them, and what reads the encoder of images
    "CLIPModel": (FULL, transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)),
    "SiglipModel": (FULL, transformers.SiglipImageProcessor(size=SQUARE)),
    "Siglip2Model": (
        TRANSFORMERS["Siglip2VisionModel"],
        transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
    ),
    "ViTMAEForPreTraining": (
        {**FULL, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
        transformers.ViTImageProcessor(size=SQUARE),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_checkpoints_of_more_than_the_encoder(tmp_path, name):
    """Their text towers and decoders are left out without being asked for; from a photo, tokens are the peer's."""
    options, processor = WHOLE[name]
    whole = make(name, **options)
    whole.save_pretrained(tmp_path / "peer")
    processor.save_pretrained(tmp_path / "peer")
    convert(tmp_path / "peer", tmp_path / "ours")
    ours = HfViTModel.from_pretrained(tmp_path / "ours").eval()
    generator = torch.Generator().manual_seed(0)
    photo = Image.fromarray(torch.randint(256, (48, 48, 3), generator=generator, dtype=torch.uint8).numpy())
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path / "ours")(photo, return_tensors="pt")["pixel_values"]
    theirs = processor(photo, return_tensors="pt")
    peer = getattr(whole, "vision_model", None) or whole.vit
    with torch.no_grad():
        if name == "ViTMAEForPreTraining":
            assert_close(ours(pixel_values).last_hidden_state, answers(peer, theirs["pixel_values"])[0])
        else:
            assert_close(ours(pixel_values).pooler_output, peer(**theirs).pooler_output)


@pytest.mark.parametrize(
    "name,options",
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_base_patch14_reg4_dinov2", {}),
        ("vit_so400m_patch14_siglip_384", {"img_size": 35}),
        ("vit_giant_patch14_dinov2", {"global_pool": "avg"}),
        ("vit_base_patch16_radio_v3", {}),
        ("beit3_base_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("cait_xxs24_224", {}),
        ("cait_s24_224", {"global_pool": "avg", "depth_token_only": 1}),
        ("beit_base_patch16_224", {}),
        ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "init_values": 0.0}),
        ("eva02_tiny_patch14_224", {}),
        ("eva02_base_patch14_448", {"img_size": 48}),
        ("eva02_base_patch16_clip_224", {}),
        ("eva_giant_patch14_clip_224", {}),
        ("vit_small_patch16_dinov3_qkvb", {"dynamic_img_size": False}),
        ("vit_small_plus_patch16_dinov3", {"dynamic_img_size": False}),
        ("vit_small_patch16_rope_224", {}),
        ("vit_small_patch16_rope_mixed_ape_224", {}),
        ("vit_medium_patch16_rope_reg1_gap_256", {}),
        ("vit_pe_spatial_base_patch16_512", {}),
    ],
    ids=str,
)
def test_families_of_timm(name, options):
    """timm's layers by name, few and narrow."""
    peer = randomise(timm.create_model(name, pretrained=False, **{**TINY, **options}))
    pixel_values = images(*peer.patch_embed.img_size)
    ours = from_peer(peer)
    with torch.no_grad():
        expected = peer(pixel_values)
        got = ours(pixel_values, output_hidden_states=True)
        assert expected.std() > 0.05
        assert_close(got.logits, expected)
        num_prefix = ours.config.num_layer_prefix_tokens
        if not hasattr(peer, "dist_token"):
            features = peer.forward_intermediates(pixel_values, output_fmt="NLC", intermediates_only=True)
            assert len(features) == len(got.hidden_states) - 1 == 2
            for states, patches in zip(got.hidden_states[1:], features):
                patches = patches[0] if isinstance(patches, tuple) else patches
                assert_close(states[:, num_prefix:], patches)
        back = to_peer(ours, "timm")
        assert type(back) is (Beit if "eva_giant" in name else type(peer))  # without rotation they are the same
        assert_close(back(pixel_values), expected)
        assert_close(ours.bfloat16()(pixel_values.bfloat16()).logits.float(), expected, tolerance=5e-2)


@pytest.mark.parametrize(
    "name,options",
    [
        ("naflexvit_base_patch16_gap", {}),
        ("naflexvit_base_patch16_map", {"pos_embed_grid_size": (4, 6)}),
        ("naflexvit_base_patch16_gap", {"pos_embed": "factorized", "embed_proj_type": "conv", "class_token": True}),
        ("naflexvit_so150m2_patch16_reg1_map", {"pos_embed": "none", "patchify_channels_last": False}),
    ],
    ids=str,
)
def test_naflexvit_on_images_of_one_shape(name, options):
    sizes = {name: value for name, value in TINY.items() if name != "img_size"}
    peer = randomise(timm.create_model(name, **{**sizes, "pos_embed_grid_size": (4, 4), **options}))
    ours = from_peer(peer)
    pixel_values = images(*ours.config.image_shape)
    with torch.no_grad():
        expected = peer(pixel_values)
        assert_close(ours(pixel_values).logits, expected)
        back = to_peer(ours, "timm")
        assert type(back) is (NaFlexVit if options.get("pos_embed") == "factorized" else VisionTransformer)
        assert_close(back(pixel_values), expected)


@pytest.mark.parametrize(
    "name,message",
    [
        ("naflexvit_base_patch16_par_gap", "pos_embed_ar_preserving must be one of False, got True"),
        ("naflexvit_base_patch16_siglip", "pos_embed_interp_mode must be one of bicubic, got 'bilinear'"),
    ],
)
def test_naflexvit_that_resamples_in_another_way_is_refused(name, message):
    with torch.device("meta"):
        peer = timm.create_model(name)
    with pytest.raises(ValueError, match=message):
        from_peer(peer, weights={})


def test_rotary_positions_matter_in_these_comparisons():
    peer = randomise(timm.create_model("eva02_tiny_patch14_224", **TINY))
    ours = from_peer(peer)
    with torch.no_grad():  # and by far more than what is tolerated
        before = ours(images()).logits
        ours.vit.rotary_embedding.table.copy_(torch.tensor([1.0, 0.0])[:, None, None].expand(2, 17, 16))
        assert (ours(images()).logits - before).abs().max() > 5e-4


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("vit_base_patch16_xp_224", {}, "block_fn must be one of Block, got 'ParallelScalingBlock'"),
        ("aimv2_large_patch14_224", {}, "embed_norm_layer must be one of Identity, got 'RmsNorm'"),
        ("eva02_enormous_patch14_clip_224", {}, "use_post_norm must be one of EvaBlock, got 'EvaBlockPostNorm'"),
        ("vit_pe_core_base_patch16_224", {}, "global_pool must be one of token, avg, max, got 'map'"),
        ("cait_xxs24_224", {"mlp_ratio_token_only": 2.0}, "mlp_ratio_token_only must be one of 128, got 64"),
        ("eva02_tiny_patch14_224", {"use_post_transformer_norm": True}, "fc_norm must be one of Identity, got Layer"),
    ],
)
def test_what_ours_cannot_compute_is_refused_by_the_peers_field(name, options, message):
    with torch.device("meta"):
        peer = timm.create_model(name, **{**TINY, **options})
    with pytest.raises(ValueError, match=message):
        from_peer(peer, weights={})


def test_dinov3_with_biases_of_its_own_is_refused():
    peer = make("DINOv3ViTModel", **FULL, query_bias=False)
    with pytest.raises(ValueError, match="query_bias must be True as value_bias is, got False"):
        from_peer(peer)


def test_published_files_of_cait_hold_the_weights_alone(tmp_path):
    peer = randomise(timm.create_model("cait_xxs24_224", **{**TINY, "num_heads": 4}))
    torch.save({"model": {f"module.{k}": v for k, v in peer.state_dict().items()}}, tmp_path / "cait.pth")
    convert(tmp_path / "cait.pth", tmp_path / "ours")
    ours = HfViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert_close(ours(images()).logits, peer(images()))


@pytest.mark.parametrize("name", ["cait_xxs24_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("size,channels", [((16, 16), 1), ((48, 40), 4)], ids=str)
def test_families_with_other_sizes_channels_and_classes(name, size, channels):
    """The same as the unchanged model on images of that size, but for the new head."""
    peer = randomise(timm.create_model(name, **TINY))
    whole, changed = from_peer(peer), from_peer(peer, changes=Changes(7, size, num_channels=channels))
    pixel_values = images(*size)[:, :1].expand(-1, channels, -1, -1)
    with torch.no_grad():
        got = changed(pixel_values)
        kernel = whole.vit.embeddings.patch_embedding.projection.weight
        expected = whole.vit(pixel_values[:, :1].expand(-1, 3, -1, -1)).pooler_output
        assert got.logits.shape == (2, 7) and changed.vit.config.image_shape == size
        if channels == 1:  # whose kernel is the sum of the three
            assert_close(changed.vit(pixel_values).pooler_output, expected)
    assert changed.vit.embeddings.patch_embedding.projection.weight.shape == (32, kernel.shape[1] // 3 * channels)


def test_a_converted_encoder_is_a_backbone_and_a_feature_extractor(tmp_path):
    peer = make("Dinov2WithRegistersModel", **SIZES, mlp_ratio=2)
    from_peer(peer).save_pretrained(tmp_path / "ours")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "peer")
    backbone = HfViTBackbone.from_pretrained(tmp_path / "ours", out_indices=[1, 2]).eval()
    theirs = transformers.Dinov2WithRegistersBackbone.from_pretrained(tmp_path / "peer", out_indices=[1, 2]).eval()
    with torch.no_grad():
        for got, expected in zip(backbone(images()).feature_maps, theirs(images()).feature_maps, strict=True):
            assert_close(got, expected)
        extract = transformers.pipeline("image-feature-extraction", str(tmp_path / "ours"), trust_remote_code=True)
        photo = Image.new("RGB", (40, 30), (200, 10, 90))
        pixel_values = extract.image_processor(photo, return_tensors="pt")["pixel_values"]
        assert_close(torch.tensor(extract(photo)), peer(pixel_values).last_hidden_state)


def test_a_detector_sees_the_features_of_a_converted_encoder(tmp_path):
    peer = randomise(timm.create_model("deit3_small_patch16_224", **TINY))
    from_peer(peer).save_pretrained(tmp_path / "ours")
    sizes = {"d_model": 16, "num_queries": 3, "decoder_layers": 1, "num_labels": 2}
    detector = HfDetrForObjectDetection.from_backbone(str(tmp_path / "ours"), out_indices=[2], **sizes).eval()
    with torch.no_grad():
        expected = peer.forward_intermediates(images(), intermediates_only=True, norm=True)[-1]
        assert_close(detector.base_model.backbone(images()).feature_maps[-1], expected)
        assert detector(images()).pred_boxes.shape == (2, 3, 4)
