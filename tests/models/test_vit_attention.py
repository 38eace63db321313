"""Every way of attending gives the same numbers and gradients, and returns its weights when asked."""

import pytest
import torch
from timm.models.beit import Attention as BeitAttention
from torch import nn
from torch.autograd import gradcheck
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

from hf_vit import HfViTForImageClassification, HfViTModel
from hf_vit.models import attention, cpu_attention


@pytest.fixture
def batched_matmuls(monkeypatch):
    """Batched matmuls, a sample or two at a time, wherever they are possible; returns the chunks' sizes."""
    sizes = []
    chunks = cpu_attention._chunks

    def recorded(query, key):
        sizes.append([len(query[chunk]) for chunk in chunks(query, key)])
        return chunks(query, key)

    monkeypatch.setattr(cpu_attention, "_chunks", recorded)
    monkeypatch.setattr(attention, "why_not_matmul_attention", lambda query, key: None)
    return sizes


@pytest.fixture
def flex_attention():
    """Without the compilation, which takes half a minute on a CPU, and without gradients, which it lacks there."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


def heads(batch_size, num_heads, num_tokens, head_dim, **kwargs):
    """Query, key and value as views of one tensor, as in the layer."""
    qkv = torch.randn(batch_size, num_tokens, 3, num_heads, head_dim, **kwargs)
    return [part.detach().requires_grad_() for part in qkv.permute(2, 0, 3, 1, 4).unbind(0)]


@pytest.mark.parametrize("implementation", ["sdpa", "matmuls"])
def test_implementations_agree_with_the_eager_one(model, images, implementation, request):
    """Outputs and gradients of all parameters in double precision."""
    chunk_sizes = request.getfixturevalue("batched_matmuls") if implementation == "matmuls" else None
    pixel_values = images(model).double()
    model = model.double().train()
    results = []
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        model.zero_grad()
        outputs = model(pixel_values, labels=torch.tensor([0, 1, 2]))
        outputs.loss.backward()
        results.append((outputs.logits, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=1e-7, rtol=1e-5)  # eager: softmax in fp32
    if chunk_sizes is not None:  # the bias wants a mask, which the matmuls do not take
        assert bool(chunk_sizes) == (
            model.config.position_embedding != "relative_bias" or "attention" in model.config.poolings
        )


def test_flex_attention_agrees_with_the_eager_one(tiny_model, images, flex_attention):
    model = tiny_model(position_embedding="relative_bias", pooling=["cls", "attention"])
    model.set_attn_implementation("eager")
    expected = model(images(model)).logits
    model.set_attn_implementation("flex_attention")
    got = model(images(model)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_queries,num_keys", [(3, 3), (1, 4)])
def test_gradients_of_the_matmuls_are_the_finite_differences(monkeypatch, num_queries, num_keys):
    torch.manual_seed(0)
    query = heads(3, 2, num_queries, 4, dtype=torch.float64)[0]
    _, key, value = heads(3, 2, num_keys, 4, dtype=torch.float64)
    monkeypatch.setattr(cpu_attention, "_CHUNK_WEIGHTS", 2 * 2 * num_queries * num_keys)
    assert [len(query[chunk]) for chunk in cpu_attention._chunks(query, key)] == [2, 1]
    assert gradcheck(lambda *states: cpu_attention._ChunkedAttention.apply(*states, 0.7), (query, key, value))


def test_matmuls_in_bf16_are_as_exact_as_the_fused_kernel():
    torch.manual_seed(0)
    states = heads(4, 2, 33, 8, dtype=torch.float64)
    cotangent = torch.randn(4, 2, 33, 8, dtype=torch.float64)

    def results(function, dtype):
        inputs = [part.detach().to(dtype).requires_grad_() for part in states]
        output = function(*inputs)
        gradients = torch.autograd.grad(output, inputs, cotangent.to(dtype))
        return [tensor.double() for tensor in (output, *gradients)]

    fused = torch.nn.functional.scaled_dot_product_attention
    exact = results(fused, torch.float64)
    errors = []
    for function in (lambda *inputs: cpu_attention._ChunkedAttention.apply(*inputs, 8**-0.5), fused):
        rounded = results(function, torch.bfloat16)
        errors.append([(a - b).norm() / b.norm() for a, b in zip(rounded, exact)])
    for ours, theirs in zip(*errors):
        assert ours < max(2 * theirs, 0.01)


@pytest.mark.parametrize("masked", ["bool", "float", "causal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_masked_attention_is_trained_in_fp32_on_the_cpu(masked, autocast):
    """All that rounds to bf16 is what goes in and what comes out."""
    torch.manual_seed(0)
    states = [part.detach().bfloat16() for part in heads(2, 2, 9, 8)]
    cotangent = torch.randn(2, 9, 2, 8).bfloat16()
    allowed = torch.rand(2, 1, 9, 9) < 0.7
    allowed[..., 0] = True
    masks = {"bool": allowed, "float": torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf), "causal": None}
    layer = nn.Module().train()
    layer.is_causal = masked == "causal"

    inputs = [part.clone().requires_grad_() for part in states]
    mask = masks[masked] if autocast or masked != "float" else masks[masked].bfloat16()
    with torch.autocast("cpu", enabled=autocast):
        query, key = (part.float() if autocast else part for part in inputs[:2])  # as after a rotation
        output, _ = attention.attend(layer, query, key, inputs[2], mask, implementation="sdpa")
    assert output.dtype == torch.bfloat16
    got = [output, *torch.autograd.grad(output, inputs, cotangent)]

    doubles = [part.double().requires_grad_() for part in states]
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked == "causal" else allowed
    exact = torch.nn.functional.scaled_dot_product_attention(*doubles, mask).transpose(1, 2)
    expected = [exact, *torch.autograd.grad(exact, doubles, cotangent.double())]
    for ours, theirs in zip(got, expected):
        assert (ours.double() - theirs).norm() < 0.0025 * theirs.norm()


def test_bf16_on_the_cpu_takes_the_matmuls(tiny_model, images, monkeypatch):
    """Forward and backward, with the chunks of the real size and of one sample."""
    model = tiny_model().bfloat16().train()
    pixel_values = images(model)
    gradients = []
    applied = []
    apply = cpu_attention._ChunkedAttention.apply
    monkeypatch.setattr(cpu_attention._ChunkedAttention, "apply", lambda *args: applied.append(1) or apply(*args))
    for chunk_weights in (cpu_attention._CHUNK_WEIGHTS, 1):
        monkeypatch.setattr(cpu_attention, "_CHUNK_WEIGHTS", chunk_weights)
        model.zero_grad()
        model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append([parameter.grad.float() for parameter in model.parameters()])
    assert len(applied) == 4
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_in_bf16_see_ordinary_attention(tiny_model, transform):
    """The products' own backward pass knows no transforms."""
    torch.manual_seed(0)
    states, tangent = torch.randn(2, 2, 17, 32).bfloat16()
    results = []
    for name in ("sdpa", "eager"):
        layer = tiny_model().bfloat16().vit.layers[0].attention
        layer.config._attn_implementation = name

        def attended(states, layer=layer):
            return layer(states)[0]

        if transform == "grad":
            result = torch.func.grad(lambda states: attended(states).float().square().sum())(states)
        elif transform == "vmap":
            result = torch.func.vmap(attended)(states[:, None])
        else:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                result = torch.func.jvp(attended, (states,), (tangent,))[1]
        results.append(result.float())
    assert (results[0] - results[1]).norm() < 0.03 * results[1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weights_are_kept_for_the_backward_pass(tiny_model, images, dtype):
    model = tiny_model(image_size=32).to(dtype).train()
    shapes = set()

    def record(tensor):
        shapes.add(tuple(tensor.shape[-2:]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model(images(model), labels=torch.tensor([0, 1, 2]))
        assert shapes and (65, 65) not in shapes
        model(images(model), output_attentions=True)
        assert (65, 65) in shapes


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("way", ["argument", "config", "loading"])
def test_weights_are_returned_when_asked_for(tiny_model, images, tmp_path, implementation, way):
    model = tiny_model(num_register_tokens=2)
    model.set_attn_implementation(implementation)
    options = {}
    if way == "argument":
        options = {"output_attentions": True}
    elif way == "config":
        model.config.output_attentions = True
    else:
        model.config.output_attentions = True
        model.save_pretrained(tmp_path)
        model = HfViTForImageClassification.from_pretrained(tmp_path, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    weights = model(images(model), **options).attentions
    assert [tuple(layer.shape) for layer in weights] == [(3, 4, 19, 19)] * 2
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(3, 4, 19))
    model.set_attn_implementation("sdpa")
    assert model(images(model), output_attentions=False).attentions is None


def test_weights_explain_the_output(tiny_model, images):
    """Weights times values, projected, is what the layer adds: they are those that were used, not others."""
    model = tiny_model(position_embedding="relative_bias", attention_probs_dropout_prob=0.3)
    recorded = {}
    layer = model.vit.layers[0].attention
    layer.qkv_proj.register_forward_hook(lambda module, args, output: recorded.update(qkv=output))
    layer.register_forward_hook(lambda module, args, output: recorded.update(output=output[0]))
    with torch.no_grad():
        weights = model(images(model), output_attentions=True).attentions[0]
        value = recorded["qkv"].chunk(3, dim=-1)[2].unflatten(-1, (4, 8)).transpose(1, 2)
        expected = layer.out_proj((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(recorded["output"], expected)
        model(images(model))
        torch.testing.assert_close(recorded["output"], expected)


def input_and_output_of_the_last_attention(model, pixel_values):
    recorded = []
    model.layers[-1].attention.register_forward_hook(
        lambda module, args, output: recorded.append((args[0], output[0]))
    )
    model(pixel_values)
    return recorded[0]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_rotary_attention_in_the_model_is_that_of_dinov3(tiny_model, images, qk_norm):
    """Queries and keys are both turned, and normed before."""
    size = {"hidden_size": 32, "num_attention_heads": 4, "patch_size": 4}
    model = tiny_model(HfViTModel, position_embedding="rope_2d", image_size=[16, 24], qk_norm=qk_norm)
    ours = model.layers[-1].attention
    config = DINOv3ViTConfig(**size, key_bias=True, attn_implementation="eager")
    peer = dinov3.DINOv3ViTAttention(config)
    peer.o_proj = ours.out_proj
    for name, weight, bias in zip("qkv", ours.qkv_proj.weight.chunk(3), ours.qkv_proj.bias.chunk(3)):
        projection = getattr(peer, f"{name}_proj")
        projection.load_state_dict({"weight": weight, "bias": bias})
        if qk_norm and name != "v":
            norm = getattr(ours, f"{name}_norm")
            setattr(peer, f"{name}_proj", nn.Sequential(projection, nn.Unflatten(-1, (4, 8)), norm, nn.Flatten(2)))
    pixel_values = images(model)
    with torch.no_grad():
        states, got = input_and_output_of_the_last_attention(model, pixel_values)
        turns = dinov3.DINOv3ViTRopePositionEmbedding(config).eval()(pixel_values)
        expected, _ = peer(states, position_embeddings=turns)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_position_bias_in_the_model_is_that_of_beit(tiny_model, images):
    model = tiny_model(HfViTModel, position_embedding="relative_bias", image_size=[16, 24])
    ours, table = model.layers[-1].attention, model.relative_position_bias
    peer = BeitAttention(32, 4, qkv_bias=True, window_size=(4, 6))
    peer.qkv.weight, peer.proj = ours.qkv_proj.weight, ours.out_proj
    for name, bias in zip("qkv", ours.qkv_proj.bias.detach().chunk(3)):
        getattr(peer, f"{name}_bias").data = bias
    peer.relative_position_bias_table.data = torch.cat((table.grid.flatten(0, 1), table.prefix))
    with torch.no_grad():
        states, got = input_and_output_of_the_last_attention(model, images(model))
        torch.testing.assert_close(got, peer(states), atol=1e-5, rtol=1e-5)


def test_flash_attention_refuses_a_position_bias(tiny_model, images):
    model = tiny_model(position_embedding="relative_bias")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' knows no position bias, nor tokens"):
        model(images(model))


def test_autocast_trains(model, images):
    """Mixed precision: parameters fp32, products bf16; the gradients stay close to those of fp32."""
    model.train()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(images(model), labels=torch.tensor([0, 1, 2])).loss
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    # A rectifier that rounding tips over the edge passes a whole gradient on, or none.
    assert (gradients[1] - gradients[0]).norm() < 0.15 * gradients[0].norm()
