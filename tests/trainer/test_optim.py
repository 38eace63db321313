"""Parameter groups, schedule and averaged weights against timm and closed forms."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.trainer.averaging import EmaArguments, averaged_model
from hf_vit.trainer.optim import OptimizationArguments, build_optimizer, build_scheduler, parameter_groups

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
    optimizer = build_optimizer(nn.Linear(2, 2), arguments, global_batch_size=8)
    scheduler = build_scheduler(optimizer, arguments, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    assert rates[12] == pytest.approx(0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


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
    optimizer = build_optimizer(model, OptimizationArguments(learning_rate=learning_rate, **options), 256)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name_of[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layer_wise_decay_is_timms():
    model = timm.create_model("vit_tiny_patch16_224", depth=4, embed_dim=24)
    theirs = param_groups_layer_decay(model, layer_decay=0.5)
    scale_of = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    expected = {name: scale_of[id(p)] for name, p in model.named_parameters() if not name.startswith("norm.")}
    ours = rates_of(model, layer_decay=0.5)
    # timm counts the last norm to the last block, BEiT and we to the head.
    assert {ours.pop("norm.weight"), ours.pop("norm.bias")} == {1.0}
    assert ours == pytest.approx(expected)


def test_layer_wise_decay_counts_a_convolutional_stem_as_the_lowest_layer():
    model = HfViTForImageClassification(HfViTConfig(**SIZES, patch_size=4, patch_embedding="hybrid"))
    rates = rates_of(model, layer_decay=0.1)
    for word, rate in {".embeddings.": 1e-3, "vit.layers.0.": 1e-2, "vit.layers.1.": 0.1, "classifier": 1}.items():
        found = [found for name, found in rates.items() if word in name]
        assert found == pytest.approx([rate] * len(found)) and found, word


def test_learning_rate_scales_with_the_global_batch():
    assert set(rates_of(nn.Linear(2, 2), learning_rate=5e-4, lr_base_batch_size=512).values()) == {2.5e-4}
