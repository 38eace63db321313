"""The detection Transformer: what its parts promise, batches, sizes, half precision, saving."""

import copy

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hf_vit import HfDetrConfig, HfDetrForObjectDetection, HfDetrModel, HfViTConfig, HfViTForImageClassification
from hf_vit.models.detr_decoder import attention_decay
from tests.random_weights import randomise

BACKBONE = {
    **{"image_size": [32, 48], "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 64, "out_indices": [1, 2], "position_embedding": "sincos_2d"},
}
SIZES = {
    **{"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "num_queries": 6},
    **{"num_labels": 3, "group_detr": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
}
CORNER = {
    **{"two_stage": False, "with_box_refine": False, "box_relative_bias": False},
    **{"group_detr": 1, "class_loss": "softmax"},
}


def config_of(**fields):
    return HfDetrConfig(**{"backbone_config": HfViTConfig(**BACKBONE), **SIZES, **fields})


def images(count, seed=0):
    return torch.randn(count, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def labels_of(*sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    return [
        {
            "class_labels": torch.randint(0, 3, (size,), generator=generator),
            "boxes": torch.rand(size, 4, generator=generator) * 0.4 + 0.2,
        }
        for size in sizes
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomise(HfDetrForObjectDetection(config_of())).eval()


@pytest.mark.parametrize("fields", [{}, {"norm_position": "pre", "encoder_layers": 1}, CORNER])
def test_permuted_queries_give_permuted_outputs(fields):
    torch.manual_seed(0)
    body = randomise(HfDetrModel(config_of(**fields))).eval()
    body(images(2))
    seen = {}
    body.decoder.register_forward_pre_hook(lambda module, arguments: seen.update(arguments=arguments))
    body(images(2))
    contents, boxes, positions, groups, *rest = seen["arguments"]
    order = torch.randperm(contents.shape[1])
    permuted = [None if each is None else each[:, order] for each in (contents, boxes, positions)]
    with torch.no_grad():
        plain = body.decoder(contents, boxes, positions, groups, *rest)
        shuffled = body.decoder(*permuted, groups, *rest)
    torch.testing.assert_close(shuffled.hidden_states, plain.hidden_states[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.boxes, plain.boxes[:, :, order], rtol=1e-4, atol=1e-5)


def test_groups_of_queries_do_not_see_each_other():
    """Training all groups gives what each gives alone."""
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of())).train()
    all_groups = model.model(images(2)).intermediate_hidden_states
    torch.testing.assert_close(
        all_groups[:, :, :6], model.eval().model(images(2)).intermediate_hidden_states, rtol=1e-4, atol=1e-5
    )
    assert all_groups.shape[2] == 12


def test_a_batch_equals_its_images_one_by_one(model):
    with torch.no_grad():
        together = model(images(8))
        alone = [model(image[None]) for image in images(8)]
    for name in ("logits", "pred_boxes"):
        expected = torch.cat([output[name] for output in alone])
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-5)


def test_positions_are_added_to_queries_and_keys_not_to_values(model):
    """Where all tokens are one, positions can turn the weights of the attention and nothing else."""
    attention = model.model.decoder.layers[0].cross_attention
    tokens, queries = torch.randn(1, 1, 32).expand(1, 5, 32), torch.randn(1, 4, 32)
    plain, _ = attention(queries, tokens)
    moved, _ = attention(queries, tokens, query_position=torch.randn(1, 4, 32), key_position=torch.randn(1, 5, 32))
    torch.testing.assert_close(moved, plain)
    one = torch.randn(1, 1, 32).expand(1, 5, 32)
    own = model.model.decoder.layers[0].attention
    torch.testing.assert_close(own(one, query_position=torch.randn(1, 5, 32))[0], own(one)[0])


@pytest.mark.parametrize(
    "fields",
    [{name: value} for name, value in CORNER.items()] + [CORNER, {"norm_position": "pre", "encoder_layers": 1}],
)
def test_each_idea_can_be_left_out_and_every_weight_is_reached(fields):
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of(**fields))).train()
    output = model(images(2), labels=labels_of(2, 0))
    assert output.logits.shape == (2, 6, 3 + (model.config.class_loss == "softmax"))
    assert output.pred_boxes.shape == (2, 6, 4)
    output.loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []


def test_images_without_objects_reach_every_weight_too():
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of())).train()
    model(images(2), labels=labels_of(0, 0)).loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_losses_of_parts_of_a_batch_add_up_to_that_of_the_batch():
    """Where each is divided by the number of objects of all: of processes, or of steps that accumulate."""
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of())).eval()
    labels, pixel_values = labels_of(3, 1, 0, 2), images(4)
    whole = model(pixel_values, labels=labels).loss
    parts = [
        model(pixel_values[part], labels=labels[part], num_boxes=torch.tensor(6.0)).loss
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_the_learnt_bias_is_zero_before_anything_is_learnt():
    """And a bias it is: with other weights it changes what is found."""
    torch.manual_seed(0)
    model = HfDetrModel(config_of(box_attention_decay=0)).eval()
    with torch.no_grad():
        start = model(images(2)).last_hidden_state
        biases, model.decoder.biases = model.decoder.biases, None
        torch.testing.assert_close(model(images(2)).last_hidden_state, start, rtol=0, atol=0)
        model.decoder.biases = randomise(biases)
        assert not torch.allclose(model(images(2)).last_hidden_state, start, atol=1e-3)


def test_a_query_looks_at_its_own_box_before_anything_is_learnt():
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.75, 0.5, 0.25, 1.0]]])
    found = attention_decay(boxes, (4, 4), 4.0).unflatten(-1, (4, 4))  # (1, 1, Q, rows, columns)
    assert found[0, 0, 0, :2, :2].eq(0).all() and found[0, 0, 1].eq(0).all()
    # The third column begins a quarter of the box's side, half a column, behind its right side.
    assert found[0, 0, 0, 0, 2].item() == pytest.approx(-4 * 0.125 / 0.5)
    assert found[0, 0, 0, 3, 3].item() == pytest.approx(2 * -4 * 0.375 / 0.5)
    # A narrow and tall box: columns count in its width, rows are all inside.
    assert found[0, 0, 2, :, 0].tolist() == pytest.approx([-4 * 0.5 / 0.25] * 4)


def test_no_more_queries_than_tokens_are_used(model):
    """On a canvas of 2 tokens, 6 queries cannot be chosen."""
    output = model(torch.randn(1, 3, 8, 16))
    assert output.logits.shape == (1, 2, 3)
    assert model.train()(torch.randn(1, 3, 8, 16), labels=labels_of(4)).loss.isfinite()
    model.eval()


def test_gradients_look_forward_twice():
    """A layer's box hangs on its own correction and on that of the layer before, not on those further down."""
    torch.manual_seed(0)
    model = randomise(HfDetrModel(config_of(decoder_layers=3))).eval()
    heads = [copy.deepcopy(model.decoder.box_head) for _ in range(3)]
    calls = iter(heads)
    model.decoder.box_head.forward = lambda states: next(calls)(states.detach())
    model(images(1)).intermediate_boxes[2].sum().backward()
    has_gradient = [any(weight.grad.any() for weight in head.parameters()) for head in heads]
    assert has_gradient == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    torch.manual_seed(0)
    model = HfDetrForObjectDetection(config_of()).to(dtype).train()
    output = model(images(2).to(dtype), labels=labels_of(3, 0))
    output.loss.backward()
    assert output.loss.isfinite() and output.pred_boxes.isfinite().all() and output.logits.dtype == dtype
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_another_backbone_serves():
    """Several maps of a convolutional backbone, of several sizes, mixed on the grid of the last."""
    backbone = ResNetConfig(
        **{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        out_features=["stage1", "stage2"],
    )
    torch.manual_seed(0)
    model = HfDetrForObjectDetection(config_of(backbone_config=backbone, encoder_layers=1)).train()
    output = model(torch.randn(2, 3, 64, 64), labels=labels_of(1, 2))
    assert output.loss.isfinite() and output.encoder_last_hidden_state.shape == (2, 32, 8, 8)


def test_a_trained_classifier_gives_its_weights_to_the_backbone(tmp_path):
    torch.manual_seed(0)
    classifier = randomise(HfViTForImageClassification(HfViTConfig(**BACKBONE)))
    classifier.save_pretrained(tmp_path / "ours")
    model = HfDetrForObjectDetection.from_backbone(str(tmp_path / "ours"), out_indices=[0, 2], **SIZES)
    assert model.config.backbone_config.out_features == ["stem", "stage2"]
    for name, weight in classifier.vit.named_parameters():
        assert weight.equal(model.model.backbone.get_parameter(name)), name
    theirs = ResNetConfig(**{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"})
    peer = ResNetForImageClassification(theirs)
    peer.save_pretrained(tmp_path / "theirs")
    model = HfDetrModel.from_backbone(str(tmp_path / "theirs"), **SIZES)
    for name, weight in peer.resnet.named_parameters():
        assert weight.equal(model.backbone.get_parameter(name)), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 36}, r"d_model must be a multiple of 8 \(8\), got 36"),
        ({"decoder_attention_heads": 3}, r"d_model must be a multiple of decoder_attention_heads \(3\), got 32"),
        ({"class_loss": "focal"}, "class_loss must be one of iou_aware, softmax, got 'focal'"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"bbox_cost": -1}, "bbox_cost must be at least 0, got -1"),
        ({"class_cost": 0, "bbox_cost": 0, "giou_cost": 0}, "must not all be 0"),
        ({"stuff_class_ids": [3]}, r"stuff_class_ids must be in \[0, 3\), got 3"),
        ({"backbone_config": {"hidden_size": 4}}, "backbone_config must have a model_type"),
        ({"prior_box_size": 0.0}, r"prior_box_size must be in \(0, 1\], got 0.0"),
        ({"box_attention_decay": -1}, "box_attention_decay must be at least 0, got -1"),
        ({"token_matches": 0}, "token_matches must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_of(**fields)


def test_an_unknown_argument_is_refused(model):
    with pytest.raises(TypeError, match="knows no argument 'pixel_mask'"):
        model(images(1), pixel_mask=torch.ones(1, 32, 48))


def test_saving_and_loading_keeps_everything(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = HfDetrForObjectDetection.from_pretrained(tmp_path).eval()
    assert loaded.config.backbone_config.to_diff_dict() == model.config.backbone_config.to_diff_dict() | {
        "dtype": "float32"
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(2)).logits, model(images(2)).logits)


def test_hidden_states_and_attention_weights_are_those_of_the_decoder(model):
    with torch.no_grad():
        output = model(images(2), output_attentions=True, output_hidden_states=True)
        plain = model(images(2))
    assert [tuple(each.shape) for each in output.decoder_hidden_states] == [(2, 6, 32)] * 3
    assert [tuple(each.shape) for each in output.decoder_attentions] == [(2, 2, 6, 6)] * 2
    assert [tuple(each.shape) for each in output.cross_attentions] == [(2, 2, 6, 24)] * 2
    for weights in (*output.decoder_attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(model.model.decoder.norm(output.decoder_hidden_states[-1]), output.last_hidden_state)
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert plain.decoder_attentions is None and plain.decoder_hidden_states is None


@pytest.mark.parametrize("fields", [{}, CORNER])
def test_attention_implementations_agree(fields):
    torch.manual_seed(0)
    model = randomise(HfDetrForObjectDetection(config_of(**fields))).train()
    found = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        output = model(images(2), labels=labels_of(2, 1))
        output.loss.backward()
        found.append([output.logits, output.pred_boxes, *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_tuple_holds_what_the_output_does(model):
    with torch.no_grad():
        output = model(images(2), labels=labels_of(2, 1), output_hidden_states=True, output_attentions=True)
        values = model(
            *(images(2), labels_of(2, 1)), output_hidden_states=True, output_attentions=True, return_dict=False
        )
    assert len(values) == len(output.to_tuple())
    for value, expected in zip(values, output.to_tuple()):
        torch.testing.assert_close(value, expected)


def test_gradients_reach_what_is_recorded(model):
    output = model(images(1), output_hidden_states=True, output_attentions=True)
    recorded = [
        states[0] for states in (output.decoder_hidden_states, output.decoder_attentions, output.cross_attentions)
    ]
    for states in recorded:
        states.retain_grad()
    (output.logits.sum() + output.pred_boxes.square().sum()).backward()
    assert all(states.grad is not None and states.grad.any() for states in recorded)


def test_heads_that_a_checkpoint_lacks_start_anew(tmp_path):
    """The body's weights are kept; a new class head starts at the prior of its classes."""
    torch.manual_seed(0)
    body = randomise(HfDetrModel(config_of()))
    body.save_pretrained(tmp_path)
    detector = HfDetrForObjectDetection.from_pretrained(tmp_path)
    torch.testing.assert_close(detector.model.state_dict(), body.state_dict(), rtol=0, atol=0)
    head = detector.class_labels_classifier
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))
    assert 0 < head.weight.std() < 0.02
