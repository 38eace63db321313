"""The Vision Transformer under the tools that train, compile, export, adapt and place models."""

import copy

import numpy as np
import peft
import pytest
import torch
from accelerate import infer_auto_device_map
from huggingface_trainer import train

from hf_vit import HfViTForImageClassification, HfViTModel


def gradients(model, pixel_values, labels):
    model.zero_grad()
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_parameter_learns(model, images):
    model.train()
    for name, gradient in gradients(model, images(model), torch.tensor([0, 1, 2])).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0, name


def test_a_few_steps_learn_a_batch_by_heart(model, images):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixel_values, labels = images(model, 8), torch.arange(8) % 5
    for _ in range(60):
        optimizer.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()
    assert torch.equal(model.eval()(pixel_values).logits.argmax(-1), labels)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, images, use_reentrant):
    model.train()
    pixel_values, labels = images(model).requires_grad_(), torch.tensor([0, 1, 2])
    expected = gradients(model, pixel_values, labels)
    # The older of the two names is deprecated where there is the newer.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = []
    model.vit.layers[0].attention_norm.register_forward_hook(lambda *args: calls.append(1))
    got = gradients(model, pixel_values, labels)
    assert len(calls) == 2  # once more in the backward pass
    torch.testing.assert_close(got, expected)


def test_gradients_of_each_sample_by_vmap(model, images):
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).logits.square().sum()

    pixel_values = images(model)
    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, pixel_values)
    for i, image in enumerate(pixel_values):
        expected = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        torch.testing.assert_close(
            [gradient[i] for gradient in by_sample.values()], list(expected), atol=1e-4, rtol=1e-4
        )


def test_gradients_are_differentiated_again(model, images):
    """A gradient penalty, in fp32 and in double precision, where every product is torch's own."""
    model.set_attn_implementation("eager")
    results = []
    for dtype in (torch.float32, torch.float64):
        pixel_values = images(model).to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(model.to(dtype)(pixel_values).logits.sum(), pixel_values, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), list(model.vit.layers.parameters())))
    single, double = (torch.cat([gradient.double().flatten() for gradient in result]) for result in results)
    assert (single - double).norm() < 1e-4 * double.norm()


# --- transformers' Trainer -------------------------------------------------------------------------------------------


@pytest.fixture
def examples(tiny_config):
    generator = np.random.default_rng(0)
    return [
        {
            "pixel_values": generator.standard_normal((3, 16, 16)).astype("float32"),
            "labels": int(generator.integers(5)),
            "teacher_logits": generator.standard_normal(5).astype("float32"),
        }
        for _ in range(8)
    ]


@pytest.mark.parametrize("has_teacher", [True, False])
def test_trainer_accumulates_the_gradients_of_the_whole_batch(tiny_model, examples, tmp_path, has_teacher):
    if not has_teacher:
        examples = [{name: example[name] for name in ("pixel_values", "labels")} for example in examples]
    start = tiny_model(use_distillation_token=True)
    at_once, in_parts = copy.deepcopy(start), copy.deepcopy(start)
    train(at_once, examples, tmp_path)
    train(in_parts, examples, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    # One step of gradient descent by hand.
    batch = {name: torch.tensor(np.array([example[name] for example in examples])) for name in examples[0]}
    start.train()(**batch).loss.backward()
    for by_hand, whole, parts in zip(start.parameters(), at_once.parameters(), in_parts.parameters()):
        expected = by_hand.detach() - 0.1 * by_hand.grad
        torch.testing.assert_close(whole.detach(), expected)
        torch.testing.assert_close(parts.detach(), expected, atol=1e-5, rtol=1e-4)


def test_trainer_learns_and_evaluates_the_mean_of_both_heads(tiny_model, examples, tmp_path):
    model = tiny_model(use_distillation_token=True)
    trainer = train(model, examples, tmp_path, steps=40, optim="adamw_torch", per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    prediction = trainer.predict(examples)
    assert metrics["eval_shape"] == str(prediction.predictions.shape) == "(8, 5)"
    pixel_values = torch.tensor(np.array([example["pixel_values"] for example in examples]))
    with torch.no_grad():
        np.testing.assert_allclose(prediction.predictions, model.eval()(pixel_values).logits, atol=1e-4)
    assert trainer.state.log_history[-2]["train_loss"] > metrics["eval_loss"]


# --- compile ---------------------------------------------------------------------------------------------------------


def test_compiles_into_one_graph_forward_and_backward(model, images):
    """`aot_eager`: captured and differentiated as for any backend, but no kernels are generated."""
    torch._dynamo.reset()
    model.train()
    pixel_values, labels = images(model), torch.tensor([0, 1, 2])
    expected = gradients(model, pixel_values, labels)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    compiled(pixel_values, labels=labels).loss.backward()
    got = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_kernels_give_the_same_logits(model, images):
    torch._dynamo.reset()
    with torch.no_grad():
        got, expected = torch.compile(model, fullgraph=True)(images(model)).logits, model(images(model)).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


# --- placement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_layers_may_lie_elsewhere(model, images, tmp_path, place):
    """With "disk", all but the embeddings stays there between uses."""
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    device_map = {"": "cpu"}
    if place == "disk":
        parts = [f"vit.{name}" for name, _ in model.vit.named_children()]
        parts += [name for name, _ in model.named_children() if name != "vit"]
        device_map = {name: "cpu" if name == "vit.embeddings" else "disk" for name in parts}
    placed = HfViTForImageClassification.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert (placed.vit.layers[1].mlp.fc1.weight.device.type == "meta") == (place == "disk")
    with torch.no_grad():
        # Hooks that fetch weights keep linear layers from oneDNN, which rounds otherwise.
        tolerance = 1e-5 if place == "disk" else 0
        torch.testing.assert_close(placed(images(model)).logits, model(images(model)).logits, atol=tolerance, rtol=0)


def test_no_residual_branch_is_split_between_devices(model):
    """Wherever memory ends, as `device_map="auto"` sees it."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    whole = ["vit.embeddings", "vit.pooler", *(f"vit.layers.{i}" for i in range(len(model.vit.layers)))]
    embeddings = sum(parameter.numel() * parameter.element_size() for parameter in model.vit.embeddings.parameters())
    if embeddings > 0.6 * total:
        pytest.skip("hardly anything is left for a second device")
    for share in (0.6, 0.7, 0.8, 0.9):
        memory = {"cpu": int(share * total), "disk": 10 * total}
        device_map = infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
        assert set(device_map.values()) == {"cpu", "disk"}
        assert not [name for name in device_map if name.startswith(tuple(f"{module}." for module in whole))]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_lora_on_attention_trains_saves_and_merges(tiny_model, architecture, images, tmp_path):
    base = tiny_model(**architecture)
    plain = copy.deepcopy(base)
    config = peft.LoraConfig(r=4, target_modules=["qkv_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.train()
    pixel_values = images(base)
    adapted(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == plain.config.num_hidden_layers
    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(pixel_values=pixel_values).logits
        # Far more than merging may change; class layers dampen what adapters of the layers before them do.
        assert not torch.allclose(expected, plain(pixel_values).logits, atol=1e-3)
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path)
        torch.testing.assert_close(loaded(pixel_values=pixel_values).logits, expected)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(pixel_values).logits, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(merged, HfViTForImageClassification) and isinstance(merged.vit, HfViTModel)


@pytest.mark.parametrize("target_modules", ["all-linear", ["qkv_proj"]], ids=str)
def test_the_second_head_is_no_class_head_to_an_adapter(tiny_model, images, target_modules):
    base = tiny_model(use_distillation_token=True)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(r=4, target_modules=target_modules, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(base, config).train()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    prefix = "base_model.model.classifier.modules_to_save.default"
    assert whole == {f"{prefix}.weight", f"{prefix}.bias"}
    heads = {name.split(".")[2] for name in trained if ".vit." not in name}
    assert heads == {"classifier"} | ({"distillation_head"} if target_modules == "all-linear" else set())
    optimizer = torch.optim.SGD([adapted.get_parameter(name) for name in trained], lr=0.1)
    adapted(pixel_values=images(base), labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    after = adapted.unload().state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"classifier.weight", "classifier.bias"}
