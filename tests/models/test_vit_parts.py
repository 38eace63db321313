"""Patch embedding, poolings, regularisation and losses against closed forms and the same parts of others."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
from random_weights import randomise
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn
from torchvision.models.resnet import BasicBlock

from hf_vit import HfViTForImageClassification, HfViTModel
from hf_vit.models import cpu_paths
from hf_vit.models.layers import MLP, DropPath, drop_path_rates
from hf_vit.models.losses import classification_loss, distillation_loss
from hf_vit.models.patch_embedding import PatchEmbedding, _convolve_by_matmul
from hf_vit.models.pooling import Pooler

# --- patch embedding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(
    ("patch_embedding", "patch_size"),
    [*((name, size) for name in ("conv", "hybrid") for size in (4, (2, 8), (3, 5))), ("lvvit", 4), ("lvvit", (2, 8))],
    ids=str,
)
def test_patch_embedding_is_a_convolution(tiny_config, patch_embedding, patch_size, dtype, tolerance):
    """Whose stride equals its kernel; after the stem, if there is one. That of torch in bf16 is wrong for a kernel and
    stride of (1, 4) on processors with AMX."""
    torch.manual_seed(0)
    size = {"patch_size": list(patch_size) if isinstance(patch_size, tuple) else patch_size, "image_size": [120, 120]}
    embedding = PatchEmbedding(tiny_config(**size, patch_embedding=patch_embedding, num_channels=2)).to(dtype)
    projection = embedding.projection
    kernel = embedding.map_patch_shape
    convolution = nn.Conv2d(projection.in_features // math.prod(kernel), 32, kernel, stride=kernel)
    convolution.load_state_dict(
        {name: getattr(projection, name).view_as(value) for name, value in convolution.state_dict().items()}
    )
    height, width = embedding.patch_shape
    pixel_values = torch.randn(2, 2, 3 * height, 5 * width, dtype=dtype)
    with torch.no_grad():
        features = embedding.stem(pixel_values) if embedding.stem else pixel_values
        expected = convolution(features.float()).to(dtype)
        got = embedding(pixel_values, (3, 5))
    assert expected.shape == (2, 32, 3, 5) and embedding.grid_size(pixel_values) == (3, 5)
    torch.testing.assert_close(got, expected.flatten(2).transpose(1, 2), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "patch_size,widths,stride", [(16, [8, 8, 16, 32], 2), (2, [32], 2), (3, [32], 1), ([4, 8], [16, 32], 2)], ids=str
)
@pytest.mark.parametrize("num_blocks", [0, 2])
def test_the_stem_is_a_chain_of_convolutions_and_resnets_blocks(tiny_config, patch_size, widths, stride, num_blocks):
    """Strided, its channels doubling up to half the hidden size, but never fewer than 8."""
    options = {"patch_size": patch_size, "image_size": 48, "hidden_size": 64, "patch_embedding": "hybrid"}
    embedding = PatchEmbedding(tiny_config(**options, num_stem_blocks=num_blocks))
    chain = []
    for inputs, outputs in zip([3, *widths], widths):
        chain += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]
        chain += [BasicBlock(outputs, outputs, norm_layer=partial(nn.GroupNorm, 8)) for _ in range(num_blocks)]
    chain = nn.Sequential(*chain)
    stem = randomise(embedding.stem)
    assert stem.stride == stride ** len(widths) and stem.out_channels == 32
    chain.load_state_dict(dict(zip(chain.state_dict(), stem.state_dict().values(), strict=True)))
    pixel_values = torch.randn(2, 3, 48, 96)
    got = stem(pixel_values)
    assert got.shape == (2, 32, 48 // stem.stride, 96 // stem.stride)
    torch.testing.assert_close(got, chain(pixel_values))


@pytest.mark.parametrize("patch_size", [16, 2, 3, (2, 8), (4, 8), (8, 4)], ids=str)
@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("by", ["dtype", "autocast"])
@pytest.mark.parametrize("has_amx", [None, True])
def test_the_stem_in_bf16_is_that_in_fp32(tiny_config, monkeypatch, patch_size, columns, by, has_amx):
    """Output and gradients, with images one patch wide too, on this processor, and as on one with AMX."""
    if has_amx is not None:
        monkeypatch.setattr(cpu_paths, "_HAS_AMX", has_amx)
    torch.manual_seed(0)
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    size = {"patch_size": [height, width], "image_size": [3 * height, 5 * width]}
    stem = PatchEmbedding(tiny_config(**size, patch_embedding="hybrid", hidden_size=64)).stem
    reduced = copy.deepcopy(stem).bfloat16() if by == "dtype" else stem
    pixel_values = torch.randn(2, 3, 3 * height, columns * width).bfloat16()
    results = []
    for module, dtype in ((stem, torch.float32), (reduced, torch.bfloat16 if by == "dtype" else torch.float32)):
        stem.zero_grad()
        states = pixel_values.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=by == "autocast" and bool(results)):
            output = module(states)
        output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype))
        results.append([output, states.grad, *(parameter.grad for parameter in module.parameters())])
    # Rounding turns some ReLUs round, which gradients feel; a wrong convolution shares nothing with a right one.
    for i, (expected, got) in enumerate(zip(*results)):
        assert (got.float() - expected).norm() < (0.4 if i else 0.03) * expected.norm()


def test_a_strided_convolution_by_matmul_is_the_convolution():
    torch.manual_seed(0)
    for height, width in ((2, 2), (4, 6), (8, 2)):
        convolution, features = nn.Conv2d(5, 7, 3, 2, 1, bias=False), torch.randn(2, 5, height, width)
        torch.testing.assert_close(_convolve_by_matmul(convolution, features), convolution(features))


# --- pooling ---------------------------------------------------------------------------------------------------------

PREFIX = torch.tensor([[[1.0, -2.0, 3.0, 4.0], [900.0, 900.0, 900.0, 900.0], [-900.0, -900.0, 900.0, -900.0]]])
PATCHES = torch.tensor([[[0.0, 2.0, -1.0, 5.0], [4.0, -6.0, -3.0, 5.0], [2.0, 1.0, -2.0, -1.0]]])
TOKENS = torch.cat((PREFIX, PATCHES), dim=1)
BY_HAND = {
    "cls": [1.0, -2.0, 3.0, 4.0],
    "mean": [2.0, -1.0, -2.0, 3.0],
    "max": [4.0, 2.0, -1.0, 5.0],
    "cls_mean": [1.75, -1.25, -0.75, 3.25],  # a quarter of the first, three quarters of the second
}


def pooler(tiny_config, pooling, **options):
    config = tiny_config(
        hidden_size=4,
        num_attention_heads=2,
        intermediate_size=8,
        use_distillation_token=True,
        num_register_tokens=1,
        pooling=pooling,
        **{"cls_mean_weight": 0.25, **options},
    )
    config._attn_implementation = "sdpa"
    return Pooler(config)


def test_attention_pooling_hands_on_signal_at_the_start_like_timms(tiny_config):
    """Drawn like the layers, the pooling of a narrow model answered every image alike, and it never learnt."""
    peer = timm.layers.AttentionPoolLatent(48, num_heads=4, mlp_ratio=4)
    torch.nn.init.xavier_uniform_(peer.kv.weight)
    torch.nn.init.xavier_uniform_(peer.proj.weight)
    model = HfViTForImageClassification(
        tiny_config(hidden_size=48, num_attention_heads=4, intermediate_size=192, pooling="attention")
    )
    tokens = torch.randn(64, 16 + model.config.num_prefix_tokens, 48)
    with torch.no_grad():
        ours = model.vit.pooler.poolings["attention"](tokens)
        theirs = peer(tokens[:, model.config.num_prefix_tokens :])
    assert ours.std(0).mean() > 0.5 * theirs.std(0).mean()


@pytest.mark.parametrize("pooling", [*BY_HAND, ["max", "cls"], ["cls_mean", "mean", "max", "cls"]], ids=str)
def test_poolings_by_hand(tiny_config, pooling):
    names = [pooling] if isinstance(pooling, str) else pooling
    expected = torch.tensor([[value for name in names for value in BY_HAND[name]]])
    for learnt in (False, True):
        module = pooler(tiny_config, pooling, learn_cls_mean_weight=learnt)
        torch.testing.assert_close(module(TOKENS).flatten(1), expected)


def test_weighted_pooling_is_a_softmax_of_scores(tiny_config):
    module = pooler(tiny_config, "weighted")
    score = module.poolings["weighted"].score
    score.weight.data = torch.tensor([[math.log(2) / 2, 0.0, 0.0, 0.0]])  # scores 0, log 4, log 2: weights 1, 4, 2
    score.bias.data.fill_(5)
    expected = (PATCHES[:, 0] + 4 * PATCHES[:, 1] + 2 * PATCHES[:, 2]) / 7
    torch.testing.assert_close(module(TOKENS).flatten(1), expected)


def test_attention_pooling_is_torchs_attention_and_an_mlp(tiny_config):
    module = pooler(tiny_config, "attention")
    part = randomise(module.poolings["attention"])
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    attention.in_proj_weight.data = torch.cat((part.q_proj.weight, part.kv_proj.weight))
    attention.in_proj_bias.data = torch.cat((part.q_proj.bias, part.kv_proj.bias))
    attention.out_proj.load_state_dict(part.out_proj.state_dict())
    pooled = attention(part.query, PATCHES, PATCHES)[0][:, 0]
    hidden = nn.functional.gelu(nn.functional.linear(part.norm(pooled), part.mlp.fc1.weight, part.mlp.fc1.bias))
    expected = pooled + nn.functional.linear(hidden, part.mlp.fc2.weight, part.mlp.fc2.bias)
    torch.testing.assert_close(module(TOKENS).flatten(1), expected)


@pytest.mark.parametrize("pooling_norm", ["before", "after", None])
@pytest.mark.parametrize("pooling", ["cls", "max", ["mean", "max"], ["cls", "mean"]], ids=str)
def test_the_final_norm_comes_before_or_after_pooling(tiny_model, images, pooling, pooling_norm):
    model = tiny_model(HfViTModel, pooling=pooling, pooling_norm=pooling_norm)
    with torch.no_grad():
        outputs = model(images(model), output_hidden_states=True)
        raw = outputs.hidden_states[-1]
        normed = model.norm(raw)
        functions = {"cls": lambda t: t[:, 0], "mean": lambda t: t[:, 1:].mean(1), "max": lambda t: t[:, 1:].amax(1)}
        names = [pooling] if isinstance(pooling, str) else pooling
        if pooling_norm == "after" or (pooling_norm is None and "cls" not in names):
            pooled, last = [model.norm(functions[name](raw)) for name in names], raw
        else:
            pooled, last = [functions[name](normed) for name in names], normed
    torch.testing.assert_close(outputs.pooler_output, torch.cat(pooled, dim=-1))
    torch.testing.assert_close(outputs.last_hidden_state, last)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_distillation_token_is_normed_once(tiny_model, images, pooling):
    """Whether the norm comes before or after pooling."""
    model = tiny_model(pooling=pooling, use_distillation_token=True)
    with torch.no_grad():
        outputs = model(images(model), output_hidden_states=True)
        token = outputs.hidden_states[-1][:, 1]
        expected = model.distillation_head(model.vit.norm(token))
    torch.testing.assert_close(outputs.distillation_logits, expected)


# --- regularisation --------------------------------------------------------------------------------------------------


def share_is(kept, expected):
    return abs(kept.float().mean().item() - expected) < 4 * math.sqrt(expected * (1 - expected) / kept.numel())


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    num_samples, rate = 20_000, 0.3
    branch = torch.randn(num_samples, 2, 3)
    output = DropPath(rate).train()(branch)
    kept = output.ne(0).flatten(1)
    assert torch.equal(kept.all(1), kept.any(1))
    kept = kept.all(1)
    torch.testing.assert_close(output[kept], branch[kept] / (1 - rate))
    assert share_is(kept, 1 - rate)
    assert DropPath(rate).train()(torch.ones(num_samples, 1)).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(DropPath(rate).eval()(branch), branch)


@pytest.mark.parametrize("option", ["hidden_dropout_prob", "drop_path_rate"])
def test_each_residual_branch_is_dropped_by_itself(tiny_model, option):
    """Dropout value by value, drop path sample by sample; the two branches independently."""
    torch.manual_seed(0)
    layer = tiny_model(HfViTModel, **{option: 0.3}).layers[-1].train()
    seen = {}
    layer.attention.register_forward_hook(lambda module, args, output: seen.update(attended=output[0]))
    layer.mlp_norm.register_forward_hook(lambda module, args, output: seen.update(between=args[0]))
    layer.mlp.register_forward_hook(lambda module, args, output: seen.update(mapped=output))
    tokens = torch.randn(2000, 2, 32)
    with torch.no_grad():
        output = layer(tokens)
    both_kept = True
    for branch, added in ((seen["attended"], seen["between"] - tokens), (seen["mapped"], output - seen["between"])):
        kept = added.ne(0)
        torch.testing.assert_close(added, branch * kept / 0.7, atol=1e-5, rtol=1e-5)
        is_per_sample = torch.equal(kept.flatten(1).all(1), kept.flatten(1).any(1))
        assert is_per_sample == (option == "drop_path_rate")
        kept = kept[:, 0, 0] if is_per_sample else kept
        assert share_is(kept, 0.7)
        both_kept = kept & both_kept
    assert share_is(both_kept, 0.49)


@pytest.mark.parametrize("seed,kept", [(0, None), (3, 0.0), (3, 1.0)], ids=["some", "none", "all"])
def test_branches_of_dropped_samples_need_not_be_computed(tiny_model, seed, kept, monkeypatch):
    layer = tiny_model(HfViTModel, drop_path_rate=0.5, layer_scale_init_value=0.5, residual_scale=2.0).layers[-1]
    layer.train()
    if kept is not None:
        monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda tensor, _: tensor.fill_(kept))
    forward, sizes, results = MLP.forward, [], []
    monkeypatch.setattr(MLP, "forward", lambda mlp, *args: sizes.append(len(args[0])) or forward(mlp, *args))
    tokens = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    for processor in (None, "amd"):
        monkeypatch.setattr(cpu_paths, "PROCESSOR", processor)
        torch.manual_seed(seed)
        output = layer(tokens)
        results.append([output, *torch.autograd.grad(output.square().sum(), (tokens, *layer.parameters()))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    assert sizes[0] == 6 and (0 < sizes[1] < 6 if kept is None else sizes[1] == max(1, 6 * kept))


def test_dropout_of_the_embeddings(tiny_model, images):
    torch.manual_seed(0)
    model = tiny_model(HfViTModel, hidden_dropout_prob=0.3)
    pixel_values = images(model, 100)
    with torch.no_grad():
        expected, got = (model.embeddings.train(training)(pixel_values, (4, 4)) for training in (False, True))
    kept = got.ne(0)
    torch.testing.assert_close(got, expected * kept / 0.7)
    assert share_is(kept, 0.7)


def test_dropout_of_the_attention_weights(tiny_model, images):
    torch.manual_seed(0)
    model = tiny_model(HfViTModel, attention_probs_dropout_prob=0.3, num_hidden_layers=1)
    pixel_values = images(model, 100)
    with torch.no_grad():
        expected, got = (
            model.train(training)(pixel_values, output_attentions=True).attentions[0] for training in (False, True)
        )
        kept = got.ne(0)
        torch.testing.assert_close(got, expected * kept / 0.7)
        assert share_is(kept, 0.7)
        # The fused kernel drops too, and nothing else does.
        one, other = (model(pixel_values).last_hidden_state for _ in range(2))
        assert not torch.allclose(one, other)
        model.layers[0].attention.dropout = 0.0
        one, other = (model(pixel_values).last_hidden_state for _ in range(2))
        assert torch.equal(one, other)


def test_drop_path_rises_linearly_with_depth(tiny_config):
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]
    layers = HfViTModel(tiny_config(num_hidden_layers=3, drop_path_rate=0.4)).layers
    assert [layer.drop_path.drop_prob for layer in layers] == pytest.approx([0, 0.2, 0.4])


def test_layer_scale_scales_each_channel_of_both_branches(tiny_model, images):
    model = tiny_model(HfViTModel, layer_scale_init_value=0.1, num_hidden_layers=1)
    layer = model.layers[0]
    with torch.no_grad():
        tokens = torch.randn(2, 17, 32)
        attended = tokens + layer.attention(layer.attention_norm(tokens))[0] * layer.layer_scale1.scale
        expected = attended + layer.mlp(layer.mlp_norm(attended)) * layer.layer_scale2.scale
        torch.testing.assert_close(layer(tokens), expected)
        layer.layer_scale1.scale.zero_()
        layer.layer_scale2.scale.zero_()
        assert torch.equal(layer(tokens), tokens)


# --- losses ----------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = 3 * RANDOM.standard_normal((2, 6, 5))
LABELS = RANDOM.integers(5, size=6)


def tensor(array):
    return torch.tensor(array, dtype=torch.float32 if array.dtype.kind == "f" else torch.int64)


def cross_entropy(logits, labels):
    return -log_softmax(logits, axis=-1)[np.arange(6), labels].mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_textbook_divergence(temperature):
    expected = rel_entr(softmax(TEACHER / temperature, -1), softmax(STUDENT / temperature, -1)).sum(-1).mean()
    got = distillation_loss(tensor(STUDENT), tensor(TEACHER), "soft", temperature)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-5)
    assert distillation_loss(tensor(TEACHER), tensor(TEACHER), "soft", temperature).item() == pytest.approx(
        0, abs=1e-6
    )


def test_hard_distillation_and_labels_are_cross_entropies():
    got = distillation_loss(tensor(STUDENT), tensor(TEACHER), "hard", 3.0)
    assert got.item() == pytest.approx(cross_entropy(STUDENT, TEACHER.argmax(-1)), rel=1e-5)
    assert classification_loss(tensor(STUDENT), tensor(LABELS)).item() == pytest.approx(
        cross_entropy(STUDENT, LABELS), rel=1e-5
    )
    mixed = 0.3 * np.eye(5)[LABELS] + 0.7 * np.eye(5)[LABELS[::-1]]
    expected = 0.3 * cross_entropy(STUDENT, LABELS) + 0.7 * cross_entropy(STUDENT, LABELS[::-1])
    assert classification_loss(tensor(STUDENT), tensor(mixed)).item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_reaches_the_teacher():
    teacher = tensor(TEACHER).requires_grad_()
    assert not distillation_loss(tensor(STUDENT), teacher, "soft", 3.0).requires_grad


@pytest.mark.parametrize("use_distillation_token", [True, False])
@pytest.mark.parametrize("distillation_type", ["soft", "hard"])
def test_the_loss_mixes_labels_and_teacher(tiny_model, images, distillation_type, use_distillation_token):
    model = tiny_model(
        use_distillation_token=use_distillation_token,
        distillation_type=distillation_type,
        distillation_alpha=0.2,
        distillation_temperature=2.0,
    )
    outputs = model(images(model, 6), labels=tensor(LABELS), teacher_logits=tensor(TEACHER))
    heads = [outputs.logits] * 2
    if use_distillation_token:
        heads = [outputs.class_logits, outputs.distillation_logits]
        torch.testing.assert_close(outputs.logits, (heads[0] + heads[1]) / 2)
    true = classification_loss(heads[0], tensor(LABELS))
    distance = distillation_loss(heads[1], tensor(TEACHER), distillation_type, 2.0)
    torch.testing.assert_close(outputs.loss, 0.8 * true + 0.2 * distance)


@pytest.mark.parametrize("labels", [LABELS, np.eye(5)[LABELS]], ids=["indices", "distributions"])
@pytest.mark.parametrize("teacher_logits", [None, tensor(TEACHER)], ids=["alone", "teacher"])
def test_the_loss_is_the_same_in_train_and_eval_and_leaves_the_config_alone(
    tiny_model, images, labels, teacher_logits
):
    model = tiny_model(use_distillation_token=True)
    before = model.config.to_dict()
    arguments = {"labels": tensor(labels), "teacher_logits": teacher_logits}
    losses = [model.train(training)(images(model, 6), **arguments).loss for training in (True, False)]
    assert torch.equal(*losses)
    assert model.config.to_dict() == before


@torch.no_grad()
def test_each_pooled_vector_is_normed_by_itself(tiny_model, images):
    model = tiny_model(HfViTModel, pooling=["max", "mean"], pooling_norm="after")
    outputs = model(images(model))
    patches = outputs.last_hidden_state[:, model.config.num_prefix_tokens :]
    expected = torch.cat((model.norm(patches.amax(1)), model.norm(patches.mean(1))), dim=1)
    torch.testing.assert_close(outputs.pooler_output, expected)
