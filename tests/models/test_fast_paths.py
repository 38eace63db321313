"""The fast paths are taken with the installed versions, and what is not taken is said with its reason."""

import json

import pytest
import torch
from transformer_tools import ARCHITECTURES, make_model, tokens
from transformers import ResNetConfig
from typer.testing import CliRunner

from hf_vit import HfViTModel
from hf_vit.cli import app
from hf_vit.fast_paths import fast_paths
from hf_vit.models import cpu_operators
from hf_vit.models.cached_decoder import why_not_cached
from hf_vit.models.cpu_operators import Guarded

LACKS_BF16 = cpu_operators.pack_weight[torch.bfloat16].why_not()


def found_in(model, folder):
    model.save_pretrained(folder)
    return {(path.work, path.path): path for path in fast_paths(folder)}


def test_a_classifier_takes_them(tiny_model, tmp_path):
    found = found_in(tiny_model(), tmp_path)
    num_layers = 2
    for work in ("inference", "training"):
        linear = found[f"float32 {work}", "linear layers by oneDNN"]
        assert linear.taken == linear.possible >= 4 * num_layers and not linear.reasons
        attention = found[f"bfloat16 {work}", "attention as batched matmuls"]
        assert attention.taken == attention.possible == num_layers and not attention.reasons
    assert found["float32 training", "attention as batched matmuls"].reasons == ("for bfloat16 alone, not float32",)
    assert found["bfloat16 inference", "linear layers by oneDNN"].reasons == ("for float32 alone, not bfloat16",)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_translator_takes_them(options, kind, tmp_path):
    found = found_in(make_model(**options), tmp_path)
    assert kind == "bfloat16" or not found["float32 training", "linear layers by oneDNN"].reasons
    packed = found[f"{kind} inference", "weights packed by pack_weights()"]
    if kind == "float32" or LACKS_BF16 is None:
        assert packed.taken == packed.possible > 20 and not packed.reasons
    else:
        assert packed.taken == 0 and packed.reasons == (LACKS_BF16,)
    for search in ("greedy", "beam"):
        path = found[f"{kind} generation", f"{search} search over one cache"]
        if options.get("position_embedding") == "relative_xl":
            assert path.taken == 0 and "is a RelativeXLSelfAttention" in path.reasons[0]
        else:
            assert path.taken == 1 and not path.reasons


def test_switched_off(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Guarded, "mode", "plain")
    found = {**found_in(tiny_model(), tmp_path / "vit"), **found_in(make_model(), tmp_path / "text")}
    assert not any(path.taken for path in found.values())
    switch = "HF_VIT_CPU_PATHS=plain"
    assert found["float32 generation", "beam search over one cache"].reasons == (switch,)
    assert found["bfloat16 training", "fused attention in fp32"].reasons in (
        (switch,),
        ("with a mask, a bias, causality or dropout, or an attn_implementation other than 'sdpa'",),
    )
    assert found["float32 inference", "weights packed by pack_weights()"].reasons == (switch,)


def test_the_command(tiny_model, tmp_path):
    tiny_model(HfViTModel, position_embedding="relative_bias").save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--speed", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"torch {torch.__version__}" in result.output and "HF_VIT_CPU_PATHS=auto" in result.output
    assert "bfloat16 inference: attention as batched matmuls: 0 of 0 (with a mask, a bias" in result.output
    (tmp_path / "config.json").write_text(json.dumps({**ResNetConfig().to_dict(), "architectures": ["ResNetModel"]}))
    with pytest.raises(ValueError, match="must be one of hf_vit, found ResNetModel"):
        fast_paths(tmp_path)


# --- what a search over one cache would pass by ----------------------------------------------------------------------


def patch_class(monkeypatch, owner, name):
    method = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: method(*args, **kwargs))


def hook_everything(model, monkeypatch, request):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    request.addfinalizer(handle.remove)


def patch_embed(model, *args):
    decoder = model.get_decoder()
    decoder.embed = lambda input_ids, embeds: type(decoder).embed(decoder, input_ids, embeds)


class Noise(torch.nn.Module):
    def forward(self, states):
        return states + 1


CHANGES = {
    "hook on dropout": lambda model, *_: model.get_decoder().layers[0].dropout.register_forward_hook(print),
    "hook on drop path": lambda model, *_: model.get_decoder().layers[1].drop_path.register_forward_pre_hook(print),
    "hook on the output": lambda model, *_: model.lm_head.register_forward_hook(print),
    "hook on all modules": hook_everything,
    "embed replaced": patch_embed,
    "embed of the class replaced": lambda model, patch, _: patch_class(patch, type(model.get_decoder()), "embed"),
    "residual of the class replaced": lambda model, patch, _: patch_class(
        patch, type(model.get_decoder().layers[0]), "_residual"
    ),
    "one dropout in training mode": lambda model, *_: model.get_decoder().layers[1].mlp.dropout.train(),
    "another dropout": lambda model, *_: setattr(model.get_decoder().layers[1], "dropout", Noise().eval()),
    "another precision": lambda model, *_: model.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_would_be_passed_by_is_left_to_transformers(change, monkeypatch, request):
    model = make_model()
    assert why_not_cached(model) == []
    change(model, monkeypatch, request)
    assert len(why_not_cached(model)) == 1


def test_a_hook_on_dropout_changes_the_texts():
    model = make_model()
    expected = model.generate(tokens(), max_new_tokens=6)
    for layer in model.get_decoder().layers:
        layer.dropout.register_forward_hook(lambda module, args, output: output.roll(1, -1) * 5)
    got = model.generate(tokens(), max_new_tokens=6)
    logits = model(tokens(), decoder_input_ids=got[:, :-1]).logits
    assert torch.equal(got[:, 1:], logits.argmax(-1)) and not torch.equal(got, expected)
