"""Packed weights give the outputs of ordinary ones, and whatever else touches one finds an ordinary one."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformer_tools import ARCHITECTURES, make_model, tokens
from transformers import AutoModelForSeq2SeqLM

from hf_vit.models import cpu_linear, cpu_operators
from hf_vit.models.cpu_linear import PackedParameter

pytestmark = pytest.mark.skipif(
    cpu_operators.pack_weight[torch.float32].why_not() is not None, reason="weights cannot be packed here"
)


def packed_names(model):
    return {name for name, parameter in model.named_parameters() if type(parameter) is PackedParameter}


def logits_of(model, grad=False):
    with torch.set_grad_enabled(grad):
        return model(tokens(), decoder_input_ids=tokens(seed=3)).logits


def texts_of(model, num_beams=1):
    return model.generate(tokens(), max_new_tokens=8, num_beams=num_beams)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_inference_equals_that_of_ordinary_weights(options, dtype, tolerance):
    if cpu_operators.pack_weight[dtype].why_not() is not None:
        pytest.skip(cpu_operators.pack_weight[dtype].why_not())
    model = make_model(**options).to(dtype)
    expected, linears = logits_of(model), [m for m in model.modules() if type(m) is torch.nn.Linear]
    assert model.pack_weights() is model
    assert {id(layer.weight) for layer in linears} == {id(p) for p in model.parameters() if type(p) is PackedParameter}
    before = packed_names(model)
    got = logits_of(model)
    torch.testing.assert_close(got, expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)
    for num_beams in (1, 4):
        texts_of(model, num_beams)
    assert packed_names(model) == before  # nothing in inference unpacks


def test_texts_are_those_of_ordinary_weights():
    model = make_model(tie_word_embeddings=False)
    expected = [texts_of(model, num_beams) for num_beams in (1, 4)]
    model.pack_weights()
    assert all(torch.equal(texts_of(model, n), texts) for n, texts in zip((1, 4), expected))


def test_packing_keeps_objects_and_numbers():
    model = make_model()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters, count = dict(model.named_parameters()), model.num_parameters()
    model.pack_weights()
    assert model.num_parameters() == count and model.dtype == torch.float32 and model.device.type == "cpu"
    assert packed_names(model)
    model.unpack_weights()
    assert not packed_names(model)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_a_packed_weight_is_the_only_one():
    layer = make_model(tie_word_embeddings=False).pack_weights().lm_head
    held = [value for value in vars(layer.weight).values() if value is not None]
    assert [value.is_mkldnn for value in held] == [True]
    memory = torch.nn.Parameter.__torch_function__(
        torch.Tensor.untyped_storage, (PackedParameter,), (layer.weight,), {}
    )
    assert memory.nbytes() == layer.weight.dtype.itemsize


# --- changes that a copy would miss ----------------------------------------------------------------------------------


def permute_heads(weight):
    weight.data = weight.data.unflatten(1, (2, -1)).flip(1).flatten(1)


def change_numpy_view(weight):
    weight.detach().numpy()[1, 2] = 5.0


def step_fused(weight):
    weight.grad = torch.zeros_like(weight)
    weight.grad[3] = 1
    torch.optim.SGD([weight], lr=10.0, fused=True).step()
    weight.grad = None


def exchange(weight, index):
    weight.data[index] = weight.data[index].flip(index[0] == slice(None))


def negate(weight):
    weight.data.mul_(-1)


def negate_in_place(weight):
    with torch.no_grad():
        weight.mul_(-1)


CHANGES = {
    "in place": negate_in_place,
    "through data": negate,
    "replaced": lambda weight: setattr(weight, "data", -weight.data),
    "two rows exchanged": lambda weight: weight.data.__setitem__([3, 7], weight.data[[7, 3]]),
    "two columns exchanged": lambda weight: weight.data.__setitem__((slice(None), [3, 7]), weight.data[:, [7, 3]]),
    "heads permuted": permute_heads,
    "one element": lambda weight: weight.data.__setitem__((5, 6), 9.0),
    "a block": lambda weight: weight.data[2:5, 3:9].mul_(-2),
    "a NumPy view": change_numpy_view,
    "a fused optimizer": step_fused,
    "copied": lambda weight: weight.data.copy_(weight.data.flip(0)),
}
LAYERS = {
    "fc2": lambda model: model.model.decoder.layers[1].mlp.fc2,
    "out_proj": lambda model: model.model.decoder.layers[1].attention.out_proj,
    "lm_head": lambda model: model.lm_head,
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_used(change, layer, is_packed):
    """In eval mode, through a weight that was taken before or after."""
    model = make_model()
    weight = layer(model).weight
    if is_packed:
        model.pack_weights()
        assert type(weight) is PackedParameter
    texts_of(model), logits_of(model)
    change(weight)
    assert type(weight) is torch.nn.Parameter and layer(model).weight is weight
    twin = make_model()
    change(layer(twin).weight)
    assert torch.equal(weight, layer(twin).weight)
    expected = logits_of(twin)
    torch.testing.assert_close(logits_of(model), expected)
    assert torch.equal(texts_of(model), texts_of(twin))
    # Of both kinds again, and the changed ones alone are other than they were.
    if is_packed:
        model.pack_weights()
        torch.testing.assert_close(logits_of(model), expected)
    assert (logits_of(make_model()) - expected).abs().max() > 1e-4


def test_a_step_of_an_optimizer_made_before_is_seen():
    model, twin = make_model(), make_model()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, fused=True) for each in (model, twin)]
    model.pack_weights()
    texts_of(model)
    for each, optimizer in zip((model, twin), optimizers):
        each(tokens(), labels=tokens(seed=5)).loss.backward()  # in eval mode
        optimizer.step()
    assert not packed_names(model)
    torch.testing.assert_close(logits_of(model), logits_of(twin))


def test_gradients_are_those_of_ordinary_weights():
    model, twin = make_model().pack_weights(), make_model()
    for each in (model, twin):
        each(tokens(), labels=tokens(seed=5)).loss.backward()
    for (name, parameter), expected in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_training_unpacks():
    model = make_model().pack_weights()
    assert not packed_names(model.train())
    with pytest.raises(ValueError, match="must be in eval mode to pack its weights"):
        model.pack_weights()


# --- what else a model goes through ----------------------------------------------------------------------------------


def saved_and_loaded(model, path):
    model.save_pretrained(path)
    return AutoModelForSeq2SeqLM.from_pretrained(path)


def state_dict_loaded(model, path):
    twin = make_model()
    negate(twin.lm_head.weight)
    twin.pack_weights().load_state_dict(model.state_dict())
    return twin


def replaced_forward(model, path):
    layer = model.model.decoder.layers[0].mlp.fc1
    layer.forward = lambda states: torch.nn.functional.linear(states, layer.weight, layer.bias)
    return model


WAYS = {
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "save_pretrained": saved_and_loaded,
    "state_dict": state_dict_loaded,
    "to": lambda model, path: model.to("cpu", torch.float64).float(),
    "functional_call": lambda model, path: (
        lambda *args, **kwargs: torch.func.functional_call(model, dict(model.named_parameters()), args, kwargs)
    ),
    "compile": lambda model, path: torch.compile(model, backend="eager"),
    "forward replaced": replaced_forward,
    "lora": lambda model, path: get_peft_model(model, LoraConfig(target_modules=["fc1", "q_proj"])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_else_is_done_to_a_packed_model(way, tmp_path):
    expected = logits_of(make_model())
    torch.testing.assert_close(logits_of(way(make_model().pack_weights(), tmp_path)), expected)


def test_half_leaves_no_copy():
    model = make_model().pack_weights().half()
    assert {p.dtype for p in model.parameters()} == {torch.float16} and not packed_names(model)
    assert all("_packed" not in vars(parameter) for parameter in model.parameters())
    assert make_model().pack_weights().to("meta").lm_head.weight.device.type == "meta"


def test_tracing_a_packed_model_is_refused_in_words():
    layer = torch.nn.Linear(8, 8)
    cpu_linear.pack_weights(layer)
    with pytest.raises(ValueError, match=r"call unpack_weights\(\) before"):
        torch.jit.trace(layer, torch.randn(2, 8), check_trace=False)


class Subclass(torch.Tensor):
    """A weight with matmuls of its own."""


def change_type(layer):
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Subclass))


CHANGED_LAYERS = {
    "hook": lambda layer: layer.register_forward_hook(lambda *args: None),
    "forward replaced": lambda layer: setattr(layer, "forward", layer.forward),
    "another type of weight": change_type,
    "float64": lambda layer: layer.double(),
    "another device": lambda layer: layer.to("meta"),
    "a part of a larger tensor": lambda layer: setattr(layer.weight, "data", torch.randn(100, 32)[:40]),
    "parametrized": lambda layer: torch.nn.utils.parametrizations.orthogonal(layer),
}


@pytest.mark.parametrize("change", CHANGED_LAYERS.values(), ids=CHANGED_LAYERS)
def test_weights_that_cannot_be_packed_stay_as_they_are(change):
    layer = torch.nn.Linear(32, 40)
    change(layer)
    cpu_linear.pack_weights(layer)
    assert not packed_names(layer)


def test_quantized_models_forget_the_packed_weights():
    model = make_model().pack_weights().quantize_dynamic()
    assert not packed_names(model)
    assert torch.equal(logits_of(model), logits_of(make_model().quantize_dynamic()))


def test_resized_vocabularies():
    model, twin = make_model().pack_weights(), make_model()
    for each in (model, twin):
        each.resize_token_embeddings(44, mean_resizing=False)
        each.get_input_embeddings().weight.data[40:] = 0.1
    torch.testing.assert_close(logits_of(model), logits_of(twin))
