"""Class attention, PatchDropout and other parts that some families of Vision Transformers have, by closed forms."""

import pytest
import timm
import torch

from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTModel
from hf_vit.explain import attention_maps
from hf_vit.models.position_encoding import MixedRotaryPosition
from hf_vit.models.vit_tokens import PatchDropout
from hf_vit.models.vit_variants import variant_names

CLASS_LAYERS = {"num_class_layers": 2, "use_distillation_token": True, "num_register_tokens": 3}
POSITIONS = [
    "learned",
    "relative_bias",
    "rope_2d",
    ["learned", "rope_axial", "relative_bias_per_layer"],
    ["rope_mixed", "relative_bias"],
]


# --- class attention -------------------------------------------------------------------------------------------------


def test_class_layers_change_the_class_tokens_alone(tiny_model, images):
    model = tiny_model(HfViTModel, **CLASS_LAYERS, pooling_norm="after")
    outputs = model(images(model), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(3, 3 + 16, 32)] * 3
    assert outputs.last_hidden_state.shape == (3, 2 + 3 + 16, 32)
    assert torch.equal(outputs.last_hidden_state[:, 2:], outputs.hidden_states[-1])
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 4, 19, 19)] * 2 + [(3, 4, 2, 21)] * 2


def test_patches_do_not_see_the_class_token(tiny_model, images):
    model = tiny_model(HfViTModel, **CLASS_LAYERS)
    before = model(images(model)).last_hidden_state
    with torch.no_grad():
        model.embeddings.class_token[..., :4] += 1
    after = model(images(model)).last_hidden_state
    assert torch.equal(before[:, 2:], after[:, 2:])
    assert not torch.allclose(before[:, :2], after[:, :2])


@pytest.mark.parametrize("pooling", ["mean", "max", "weighted", "attention", ["mean", "max"]], ids=str)
def test_poolings_of_patches_are_those_of_a_model_without_class_layers(tiny_model, images, pooling):
    model = tiny_model(HfViTModel, **CLASS_LAYERS, pooling=pooling)
    plain = tiny_model(HfViTModel, num_register_tokens=3, pooling=pooling, use_class_token=False)
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    assert not [name for name in missing if "position" not in name]
    with torch.no_grad():  # with class layers no prefix token has a position
        plain.embeddings.position_embedding.prefix.zero_()
    torch.testing.assert_close(model(images(model)).pooler_output, plain(images(model)).pooler_output)


@pytest.mark.parametrize("name", [name for name in variant_names() if name.startswith("cait_")])
def test_variants_of_cait_are_as_large_as_timms(name):
    with torch.device("meta"):
        ours = HfViTForImageClassification(HfViTConfig.from_variant(name, num_labels=1000))
        theirs = timm.create_model(name)
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())


def test_backbone_and_layer_groups_with_class_layers(tiny_model, images):
    options = {**CLASS_LAYERS, "out_indices": [0, 1, 2]}
    backbone = tiny_model(HfViTBackbone, **options)
    maps = backbone(images(backbone)).feature_maps
    assert [tuple(features.shape) for features in maps] == [(3, 32, 4, 4)] * 3
    states = backbone.norm(HfViTModel.forward(backbone, images(backbone), output_hidden_states=True).hidden_states[1])
    assert torch.equal(maps[1], states[:, 3:].transpose(1, 2).unflatten(2, (4, 4)))
    assert len(backbone.layer_groups()) == 1 + 2 and len(tiny_model(HfViTModel, **CLASS_LAYERS).layer_groups()) == 5
    backbone.train()(images(backbone)).feature_maps[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_attention_maps_read_class_layers(tiny_model, images):
    model = tiny_model(HfViTModel, **CLASS_LAYERS)
    maps, rollout = attention_maps(model, images(model))
    weights = model(images(model), output_attentions=True).attentions
    assert maps.shape == (3, 4, 4, 4, 4)
    torch.testing.assert_close(maps[:, 3], weights[3][:, :, 0, 5:].unflatten(-1, (4, 4)))
    assert torch.equal(maps[:, 0], torch.zeros_like(maps[:, 0]))  # before it enters it sees itself alone
    last = weights[3].mean(1)[:, 0] / 2
    last[:, 0] += 0.5
    assert rollout.shape == (3, 4, 4) and (rollout.sum((1, 2)) <= last.sum(1)).all()


# --- PatchDropout ----------------------------------------------------------------------------------------------------


def test_patch_dropout_keeps_a_share_of_the_patches_in_order_and_the_prefix():
    torch.manual_seed(0)
    dropout = PatchDropout(0.25, num_prefix_tokens=2).train()
    tokens = torch.arange(2 + 40.0).expand(200, -1)[:, :, None]
    kept_tokens, kept = dropout(tokens)
    assert kept.shape == (200, 2 + 30)
    assert torch.equal(kept_tokens[:, :, 0], kept.float())
    assert torch.equal(kept[:, :2], torch.tensor([[0, 1]]).expand(200, -1))
    assert (kept.diff(dim=1) > 0).all()
    counts = kept[:, 2:].flatten().bincount(minlength=42)[2:]
    assert (counts - 150).abs().max() < 6 * (200 * 0.25 * 0.75) ** 0.5
    same, none = dropout.eval()(tokens)
    assert same is tokens and none is None
    assert PatchDropout(0.99, 0).train()(tokens)[1].shape == (200, 1)


@pytest.mark.parametrize("options", [{}, {"talking_heads": True}, {"registers_first": True}], ids=str)
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_kept_patches_compute_as_if_the_others_were_masked(tiny_model, images, positions, options):
    model = tiny_model(HfViTModel, position_embedding=positions, num_register_tokens=1, **options)
    kept = torch.tensor([[0, 1, *rows] for rows in ([2, 5, 9, 16], [3, 4, 10, 17], [2, 3, 4, 5])])
    model.patch_dropout.forward = lambda states: (states.gather(1, kept[:, :, None].expand(-1, -1, 32)), kept)
    got = model(images(model)).last_hidden_state
    del model.patch_dropout.forward
    mask = torch.zeros(3, 1, 1, 18, dtype=torch.bool).scatter(3, kept[:, None, None], True)
    for layer in model.layers:
        layer.attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask, "output_attentions": True}),
            with_kwargs=True,
        )
    expected = model(images(model)).last_hidden_state.gather(1, kept[:, :, None].expand(-1, -1, 32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_patches_are_dropped_in_training_alone_and_never_in_a_backbone(tiny_model, images):
    model = tiny_model(patch_dropout_prob=0.5, use_distillation_token=True).train()
    outputs = model(images(model), labels=torch.tensor([0, 1, 2]), output_hidden_states=True)
    assert outputs.hidden_states[0].shape == (3, 2 + 8, 32)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(images(model), output_hidden_states=True).hidden_states[0].shape == (3, 2 + 16, 32)
    backbone = tiny_model(HfViTBackbone, patch_dropout_prob=0.5).train()
    assert backbone(images(backbone)).feature_maps[0].shape == (3, 32, 4, 4)


# --- tokens, norms, padding ------------------------------------------------------------------------------------------


def test_the_order_of_registers_matters_to_nothing_but_their_place(tiny_model, images):
    options = {"num_register_tokens": 2, "use_distillation_token": True, "pooling": ["cls", "cls_mean", "attention"]}
    last, first = (
        tiny_model(**options, position_embedding=["sincos_2d", "rope_axial"], registers_first=value)
        for value in (False, True)
    )
    first.load_state_dict(last.state_dict())
    assert (first.config.class_token_index, first.config.distillation_token_index) == (2, 3)
    got, expected = first(images(first)), last(images(last))
    torch.testing.assert_close(got.class_logits, expected.class_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.distillation_logits, expected.distillation_logits, atol=1e-5, rtol=1e-5)


def test_class_token_alone_has_a_position(tiny_model, images):
    options = {"num_register_tokens": 2, "use_distillation_token": True}
    model = tiny_model(HfViTModel, **options, position_embedding_on_prefix="class")
    other = tiny_model(HfViTModel, **options)
    assert model.embeddings.position_embedding.prefix.shape == (2, 32)
    weights = model.state_dict()
    name = "embeddings.position_embedding.prefix"
    other.load_state_dict({**weights, name: torch.cat((weights[name], torch.zeros(2, 32)))})
    assert torch.equal(*(each(images(each)).last_hidden_state for each in (model, other)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_a_final_norm_the_tokens_stay_as_they_are(tiny_model, images, pooling):
    model = tiny_model(HfViTModel, pooling=pooling, pooling_norm="none")
    outputs = model(images(model), output_hidden_states=True)
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    assert not any(name.startswith("norm.") for name in model.state_dict())


def test_images_are_padded_to_whole_patches(tiny_model, images):
    model = tiny_model(patch_fit="pad", image_size=[16, 24])
    pixel_values = images(model, height=13, width=22)
    padded = torch.zeros(3, 3, 16, 24)
    padded[:, :, :13, :22] = pixel_values
    assert torch.equal(model(pixel_values).logits, model(padded).logits)
    assert torch.equal(tiny_model(image_size=[16, 24])(padded).logits, model(padded).logits)


def test_what_is_left_over_beside_whole_patches_is_not_looked_at(tiny_model, images):
    model = tiny_model(patch_fit="crop", image_size=[18, 27])
    assert model.config.grid_size == (4, 6)
    pixel_values = images(model)
    assert torch.equal(model(pixel_values).logits, model(pixel_values[:, :, :16, :24]).logits)
    with pytest.raises(ValueError, match="height and width that are multiples of the patch size 4 x 4, got 3 x 27"):
        model(pixel_values[:, :, :3])


# --- positions -------------------------------------------------------------------------------------------------------


def test_mixed_frequencies_start_as_turned_pairs_of_axes(tiny_config):
    torch.manual_seed(0)
    model = HfViTModel(tiny_config(hidden_size=64, position_embedding="rope_mixed", rope_theta=50))
    for position in (part for part in model.modules() if isinstance(part, MixedRotaryPosition)):
        frequencies = position.frequencies.unflatten(-1, (2, 4))  # (2, heads, 2 axes, K / 4)
        lengths = 50 ** -(torch.arange(4) / 4)
        torch.testing.assert_close(frequencies.norm(dim=0), lengths.expand(4, 2, 4))
        at_right_angles = (frequencies[:, :, 0] * frequencies[:, :, 1]).sum(0)
        torch.testing.assert_close(at_right_angles, torch.zeros(4, 4), atol=1e-6, rtol=0)
    assert not torch.equal(*(layer.rotary_embedding.frequencies for layer in model.layers))


@pytest.mark.parametrize("position", ["rope_axial", "rope_mixed"])
def test_positions_in_patches_are_scaled_only_to_a_given_grid(tiny_model, images, position):
    """Every second patch of a grid twice as fine turns like a patch of the coarse one."""

    def table(**options):
        model = tiny_model(HfViTModel, position_embedding=position, use_class_token=False, pooling="mean", **options)
        turning = model.rotary_embedding or model.layers[0].rotary_embedding
        return turning((8, 8))[0].unflatten(-2, (8, 8)), turning((4, 4))[0].unflatten(-2, (4, 4))

    fine, coarse = table()
    torch.testing.assert_close(fine[..., :4, :4, :], coarse)
    fine, coarse = table(position_grid_size=[4, 4])
    torch.testing.assert_close(fine[..., ::2, ::2, :], coarse)


@pytest.mark.parametrize("name", ["relative_bias_per_layer", "rope_axial"])
def test_other_image_sizes_while_loading(tiny_model, images, tmp_path, name):
    model = tiny_model(HfViTModel, position_embedding=["learned", name])
    model.save_pretrained(tmp_path)
    loaded = HfViTModel.from_pretrained(tmp_path, image_size=24)
    expected = model(images(loaded)).last_hidden_state  # resampled as it runs
    torch.testing.assert_close(loaded(images(loaded)).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
