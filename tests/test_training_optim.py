"""Parameter groups, schedule and averaged weights against timm and closed forms."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from hf_vit import HfViTConfig, HfViTForImageClassification
from training.ema import ema_model
from training.optim import OptimizationArguments, build_optimizer, build_scheduler, parameter_groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8}


def names_by_decay(model, groups):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["weight_decay"]: {name_of[id(p)] for p in group["params"]} for group in groups}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "resnet18"])
def test_decay_goes_where_timm_puts_it(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    ours = names_by_decay(model, parameter_groups(model, OptimizationArguments(weight_decay=0.1)))
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
    groups = names_by_decay(model, parameter_groups(model, OptimizationArguments(weight_decay=0.1)))
    assert set().union(*groups.values()) == {name for name, _ in model.named_parameters()}
    words = ("token", "position", "norm", "bias", "scale", "query")
    assert not [name for name in groups[0.1] if any(word in name for word in words)]
    left = [name for name in groups[0.0] if not any(word in name for word in words)]
    assert not [name for name in left if model.get_parameter(name).ndim > 1]


def test_warm_up_then_cosine_to_zero():
    arguments = OptimizationArguments(learning_rate=0.5, warmup_ratio=0.2)
    optimizer = build_optimizer(nn.Linear(2, 2), arguments)
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
    averaged = ema_model(model, decay=0.8)
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
