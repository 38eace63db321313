"""Parameter groups, schedule and averaged weights against timm and closed forms."""

import sys
from functools import partial
from typing import get_args

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from transformers import (
    BartForConditionalGeneration,
    BeitForImageClassification,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    MarianMTModel,
    MBartForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
    SchedulerType,
    T5Config,
    T5ForConditionalGeneration,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTForImageClassification,
)

from hf_vit import (
    HfTransformerConfig,
    HfTransformerForCausalLM,
    HfTransformerForConditionalGeneration,
    HfViTConfig,
    HfViTForImageClassification,
)
from hf_vit.extras import MissingExtraError
from hf_vit.trainer.averaging import EmaArguments, averaged_model
from hf_vit.trainer.layers import parameter_depths
from hf_vit.trainer.optim import OptimizationArguments, Schedule, build_optimizer, build_scheduler, parameter_groups
from hf_vit.trainer.unfreezing import GradualUnfreezing

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8}


def names_by_decay(model, groups):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["weight_decay"]: {name_of[id(p)] for p in group["params"]} for group in groups}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "resnet18"])
def test_decay_goes_where_timm_puts_it(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    ours = names_by_decay(model, parameter_groups(model, OptimizationArguments(weight_decay=0.1), 1.0))
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(model, weight_decay=0.1, no_weight_decay_list=spared)
    assert ours == names_by_decay(model, theirs)


@pytest.mark.parametrize("position_embedding", ["learned", "learned_2d", "relative_bias"])
def test_tokens_positions_norms_and_biases_of_ours_do_not_decay(position_embedding):
    model = HfViTForImageClassification(
        HfViTConfig(
            **SIZES,
            patch_size=4,
            position_embedding=position_embedding,
            use_distillation_token=True,
            num_register_tokens=2,
            layer_scale_init_value=0.1,
            pooling=["weighted", "attention"],
        )
    )
    groups = names_by_decay(model, parameter_groups(model, OptimizationArguments(weight_decay=0.1), 1.0))
    assert set().union(*groups.values()) == {name for name, _ in model.named_parameters()}
    words = ("token", "position", "norm", "bias", "scale", "query")
    assert not [name for name in groups[0.1] if any(word in name for word in words)]
    left = [name for name in groups[0.0] if not any(word in name for word in words)]
    assert not [name for name in left if model.get_parameter(name).ndim > 1]


def test_warm_up_then_cosine_to_zero():
    arguments = OptimizationArguments(learning_rate=0.5, warmup_ratio=0.2)
    optimizer = build_optimizer(arguments, 8, partial(parameter_groups, nn.Linear(2, 2)))
    scheduler = build_scheduler(optimizer, arguments, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    assert rates[12] == pytest.approx(0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_schedules_are_those_of_transformers_that_follow_the_steps():
    theirs = {each.value for each in SchedulerType}
    assert theirs - {"greedy", "reduce_lr_on_plateau"} == set(get_args(Schedule))
    with pytest.raises(ValueError, match=r"--lr_scheduler_type must be one of linear, .*, found 'greedy'"):
        OptimizationArguments(lr_scheduler_type="greedy")


def test_averaged_weights_follow_the_recurrence_with_warm_up():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    averaged = averaged_model(model, EmaArguments(ema_decay=0.8), num_steps=20, steps_per_epoch=5)
    expected = model[0].weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.fill_(update)
            model[1].num_batches_tracked += 1
        averaged.update_parameters(model)
        decay = min(0.8, (1 + update) / (10 + update)) if update else 0.0
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(averaged.module[0].weight, expected)
    assert averaged.module[1].num_batches_tracked == 20
    assert 14 < float(averaged.module[1].running_mean[0]) < 19
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


@pytest.mark.parametrize(("num_steps", "ends"), [(12, (4, 8, 12)), (10, (4, 8, 10)), (4, (4,))])
def test_the_mean_of_the_last_epochs_is_of_the_weights_they_ended_with(num_steps, ends):
    model = nn.Linear(3, 2)
    averaged = averaged_model(model, EmaArguments(num_averaged_epochs=2), num_steps, steps_per_epoch=4)
    weights = {}
    for step in range(1, num_steps + 1):
        model.weight.data.normal_()
        weights[step] = model.weight.detach().clone()
        averaged.update_parameters(model)
        if step == ends[0] and len(ends) > 2:
            torch.testing.assert_close(averaged.module.weight, weights[step])
    expected = torch.stack([weights[end] for end in ends[-2:]]).mean(0)
    torch.testing.assert_close(averaged.module.weight, expected)


def rates_of(model, learning_rate=1.0, **options):
    arguments = OptimizationArguments(learning_rate=learning_rate, **options)
    optimizer = build_optimizer(arguments, 256, partial(parameter_groups, model))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name_of[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


LAYER_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT_SIZES = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_layer_wise_decay_of_timms_models_is_timms(name, wrapped):
    model = timm.create_model(name)
    theirs = param_groups_layer_decay(model, layer_decay=0.5)
    scale_of = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    expected = {name: scale_of[id(p)] for name, p in model.named_parameters()}
    prefix = ""
    if wrapped:
        prefix, model = "timm_model.", TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name))
        expected = {
            name: rate for name, rate in expected.items() if f"{prefix}{name}" in dict(model.named_parameters())
        }
    ours = rates_of(model, layer_decay=0.5)
    assert len(set(expected.values())) > 2
    assert {name: ours[f"{prefix}{name}"] for name in expected} == pytest.approx(expected)


def assert_rates(model, expected, decay=0.1):
    """Every parameter's rate is the decay to the power that belongs to the first of the words in its name."""
    for name, rate in rates_of(model, layer_decay=decay).items():
        power = next(power for word, power in expected.items() if word in name)
        assert rate == pytest.approx(decay**power), name


@pytest.mark.parametrize("position_embedding", ["learned", "relative_bias"])
@pytest.mark.parametrize("patch_embedding", ["conv", "hybrid"])
def test_layer_wise_decay_counts_the_stem_as_the_lowest_layer(patch_embedding, position_embedding):
    config = HfViTConfig(
        **SIZES,
        patch_size=4,
        patch_embedding=patch_embedding,
        position_embedding=position_embedding,
        pooling="attention",
        use_distillation_token=True,
    )
    stem = {"vit.embeddings.": 3, "relative_position_bias": 3}
    head = {"vit.norm": 0, "pooler": 0, "classifier": 0, "distillation_head": 0}
    assert_rates(HfViTForImageClassification(config), {**stem, "vit.layers.0.": 2, "vit.layers.1.": 1, **head})


@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification, BeitForImageClassification])
def test_layer_wise_decay_knows_some_models_of_transformers(kind):
    model = kind(kind.config_class(**LAYER_SIZES, image_size=8, patch_size=4))
    layer = "layers" if hasattr(model.base_model, "layers") else "encoder.layer"
    layers = {f"{layer}.0.": 2, f"{layer}.1.": 1}
    assert_rates(model, {"embeddings.": 3, **layers, "": 0})


def test_layer_wise_decay_knows_dinov2():
    model = Dinov2ForImageClassification(Dinov2Config(**LAYER_SIZES, image_size=8, patch_size=4))
    assert_rates(model, {"embeddings.": 3, ".0.": 2, ".1.": 1, "": 0})


@pytest.mark.parametrize("position_embedding", ["learned", "relative"])
@pytest.mark.parametrize("share", [True, False])
def test_layer_wise_decay_puts_the_decoder_above_the_encoder(share, position_embedding):
    config = HfTransformerConfig(
        **TEXT_SIZES,
        position_embedding=position_embedding,
        share_encoder_decoder_embeddings=share,
        norm_position="pre",
    )
    stem = {"embed_tokens": 6, "_position": 6}
    encoder = {"encoder.layers.0.": 5, "encoder.layers.1.": 4, "encoder.norm": 4}
    decoder = {f"decoder.layers.{i}.": 3 - i for i in range(3)}
    model = HfTransformerForConditionalGeneration(config)
    assert_rates(model, {**stem, **encoder, **decoder, "decoder.norm": 0, "lm_head": 0})
    alone = HfTransformerForCausalLM(HfTransformerConfig(**TEXT_SIZES, norm_position="pre"))
    assert_rates(alone, {"embed_tokens": 4, **decoder, "decoder.norm": 0, "lm_head": 0})


@pytest.mark.parametrize("kind", [MarianMTModel, BartForConditionalGeneration, MBartForConditionalGeneration])
def test_layer_wise_decay_knows_translators_of_transformers(kind):
    model = kind(kind.config_class(**TEXT_SIZES, pad_token_id=1, decoder_start_token_id=1))
    above = 1 if kind is MBartForConditionalGeneration else 0  # the others' last layers have nothing above them
    stem = {"shared": 5, "embed_": 5, "layernorm_embedding": 5}
    encoder = {"encoder.layers.0.": 4, "encoder.layers.1.": 3, "encoder.layer_norm": 3}
    powers = {**stem, **encoder, **{f"decoder.layers.{i}.": 2 - i for i in range(3)}, "": 0}
    assert_rates(model, {word: power + above if word else 0 for word, power in powers.items()})


def test_layer_wise_decay_knows_t5():
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 3}
    model = T5ForConditionalGeneration(T5Config(vocab_size=60, **sizes))
    encoder = {"encoder.block.0.": 5, "encoder.block.1.": 4, "encoder.final_layer_norm": 4}
    assert_rates(model, {"shared": 6, **encoder, **{f"decoder.block.{i}.": 3 - i for i in range(3)}, "": 0})


def test_layer_wise_decay_of_models_that_do_not_declare_their_layers_is_refused():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = ResNetForImageClassification(config)
    assert set(rates_of(model).values()) == {1.0}
    with pytest.raises(ValueError, match=r"--head_learning_rate need .* a resnet model does not; known are bart"):
        rates_of(model, layer_decay=0.5)
    with pytest.raises(ValueError, match="a Linear model does not"):
        rates_of(nn.Linear(2, 2), layer_decay=0.5)


def test_learning_rate_scales_with_the_global_batch():
    assert set(rates_of(nn.Linear(2, 2), learning_rate=5e-4, lr_base_batch_size=512).values()) == {2.5e-4}


def test_the_head_has_its_own_rate_and_all_others_theirs():
    model = HfViTForImageClassification(HfViTConfig(**SIZES, patch_size=4, num_labels=3))
    arguments = OptimizationArguments(learning_rate=0.1, head_learning_rate=1.0, layer_decay=0.5)
    plain = OptimizationArguments(learning_rate=0.1, layer_decay=0.5)

    def rates(given):
        groups = parameter_groups(model, given, 0.2)
        return {id(parameter): group["lr"] for group in groups for parameter in group["params"]}

    with_head, without = rates(arguments), rates(plain)
    head = {id(parameter) for parameter in model.classifier.parameters()}
    assert all(with_head[each] == pytest.approx(2.0) for each in head)
    changed = {each for each in without if with_head[each] != without[each]}
    assert head <= changed and all(without[each] == 0.2 for each in changed)


def test_sgd_is_torchs_with_nesterov_momentum():
    arguments = OptimizationArguments(optim="sgd", learning_rate=0.1, weight_decay=0.01, sgd_momentum=0.8)
    weights = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [weights[0]], "weight_decay": 0.01, "lr": 0.1}]
    ours = build_optimizer(arguments, 1, lambda *_: groups)
    theirs = torch.optim.SGD([weights[1]], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for step in range(3):
        for weight, optimizer in zip(weights, (ours, theirs)):
            weight.grad = torch.full((3,), 0.5 + step)
            optimizer.step()
    torch.testing.assert_close(*weights)


def test_layers_are_unfrozen_from_the_head_down_and_rest_untouched(tiny_model):
    model = tiny_model().train()
    depths = parameter_depths(model)
    deepest = max(depths.values())  # 3: the head, above two layers and the stem
    unfreezing = GradualUnfreezing(model, num_steps=6)
    groups = parameter_groups(model, OptimizationArguments(weight_decay=0.1), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first = {}
    for step in range(7):
        before = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
        model(pixel_values=pixels, labels=torch.tensor([0, 1])).loss.backward()
        unfreezing.drop_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        for parameter in model.parameters():
            if not torch.equal(parameter, before[id(parameter)]):
                first.setdefault(id(parameter), step)
    assert {depths[number]: step for number, step in first.items()} == {deepest: 0, 2: 2, 1: 4, 0: 6}
    assert len(first) == len(depths)


def test_muon_gets_hidden_matrices_and_turns_their_update_into_a_rotation(tiny_model):
    model = tiny_model(use_distillation_token=True)
    arguments = OptimizationArguments(optim="muon", weight_decay=0.0)
    optimizer = build_optimizer(arguments, 1.0, partial(parameter_groups, model))
    by_muon = {id(each) for group in optimizer.param_groups if not group["use_fallback"] for each in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in by_muon}
    linear = {f"{name}.weight" for name, module in model.vit.named_modules() if isinstance(module, nn.Linear)}
    assert names == {f"vit.{name}" for name in linear}  # not the classifiers, biases, norms, tokens and positions
    weight = model.vit.layers[0].mlp.fc1.weight
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    # The paper's update is U V^T of the gradient's decomposition U S V^T: all singular values the same, nearly.
    change = before - weight.detach()
    left, _, right = torch.linalg.svd(weight.grad, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(change.flatten(), (left @ right).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("name", ["lion", "lamb"])
def test_optimizers_of_timm_step_as_timm_has_them(tiny_model, name):
    weights = []
    for ours in (True, False):
        model = tiny_model()
        arguments = OptimizationArguments(optim=name, adam_beta2=0.99, weight_decay=0.1, learning_rate=0.01)
        groups = parameter_groups(model, arguments, 0.01)
        if ours:
            optimizer = build_optimizer(arguments, 1.0, partial(parameter_groups, model))
        else:
            optimizer = timm.optim.create_optimizer_v2(groups, name, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*weights)


def test_a_library_that_is_not_there_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    arguments = OptimizationArguments(optim="adamw_8bit")
    with pytest.raises(MissingExtraError, match=r'pip install "hf_vit\[optimizers\]"'):
        build_optimizer(arguments, 1.0, partial(parameter_groups, tiny_model()))
