"""Training steps that do not wait for the device, and what becomes of losses that are not finite."""

import ast
import inspect
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import TINY, finish
from translators import batch

import hf_vit
from hf_vit import HfTransformerConfig, HfTransformerForConditionalGeneration
from hf_vit.models.padding_mask import broadcast_mask
from hf_vit.tasks.task import StepOutput
from hf_vit.train import build_accelerator, build_task, parse
from hf_vit.trainer.averaging import WeightAverage
from hf_vit.trainer.budget import Budget
from hf_vit.trainer.loop import TrainingLoop
from hf_vit.trainer.step_watch import StepWatch

PACKAGE = Path(hf_vit.__file__).parent
READ = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "nonzero"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


@cache
def cpu_checks(path):
    """The lines of a file that run only where a tensor is found to be on a CPU: under such a condition, or behind
    another one that returns."""
    found = []
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.If) and "device.type == 'cpu'" in ast.unparse(node.test):
            found += node.body
        for number, statement in enumerate(node.body if isinstance(node, ast.FunctionDef) else ()):
            if isinstance(statement, ast.If) and "device.type != 'cpu'" in ast.unparse(statement.test):
                found += node.body[number + 1 :] if isinstance(statement.body[-1], ast.Return) else []
    return {line for statement in found for line in range(statement.lineno, statement.end_lineno + 1)}


class NoWaiting:
    """Within the context, lists where a value that came from the device's tensors is read by the CPU.

    On a CPU every tensor lies where it can be read, so what would lie on a device is followed: the tensors given, and
    whatever is computed from them. Checks that the code makes on a CPU alone, and torch's own in `one_hot`, do not
    count.
    """

    def __init__(self, tensors):
        self.on_device = {id(tensor): tensor for tensor in tensors}
        self.found = []
        self.exempt = 0

    def note(self, name, arguments):
        if not self.exempt and any(id(leaf) in self.on_device for leaf in tree_leaves(arguments)):
            frames = [frame for frame in inspect.stack(0) if frame.filename.startswith(str(PACKAGE))]
            if not any(frame.lineno in cpu_checks(frame.filename) for frame in frames):
                self.found.append(f"{name} in {frames[0].filename}:{frames[0].lineno}" if frames else name)

    def follow(self, results):
        self.on_device.update((id(leaf), leaf) for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor))

    def __enter__(self):
        outer = self

        class Functions(TorchFunctionMode):
            def __torch_function__(self, function, types, arguments=(), options=None):
                name = getattr(function, "__name__", "")
                if name in READ:
                    outer.note(name, arguments)
                outer.exempt += name == "one_hot"
                try:
                    return function(*arguments, **(options or {}))
                finally:
                    outer.exempt -= name == "one_hot"

        class Operators(TorchDispatchMode):
            def __torch_dispatch__(self, operator, types, arguments=(), options=None):
                given = (arguments, options or {})
                if operator._schema.name.removeprefix("aten::") in WAITING:
                    outer.note(str(operator), given)
                results = operator(*arguments, **(options or {}))
                if any(id(leaf) in outer.on_device for leaf in tree_leaves(given)):
                    outer.follow(results)
                return results

        self.modes = [Functions(), Operators()]
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)


IMAGES = [
    "--image_size=8",
    "--train_val_split=0",
    "--max_train_samples=64",
    "--per_device_train_batch_size=8",
    "--max_train_steps=4",
    "--mixup_alpha=0.8",
    "--cutmix_alpha=1",
    "--label_smoothing_factor=0.1",
    "--ema_decay=0.9",
    "--config_overrides=hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=16,patch_size=4,"
    "drop_path_rate=0.1,hidden_dropout_prob=0.1",
]
TEXTS = [
    "--recipe=dates",
    "--vocab_size=300",
    "--max_train_samples=120",
    "--max_eval_samples=8",
    "--max_tokens_per_batch=400",
    "--max_train_steps=4",
    "--config_overrides=d_model=16,encoder_layers=1,decoder_layers=1,encoder_ffn_dim=16,decoder_ffn_dim=16",
]


@pytest.fixture
def make_loop(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def make(*argv):
        arguments = parse([*argv, "--output_dir", str(tmp_path / "run")])
        accelerator, task = build_accelerator(arguments), build_task(arguments)
        return TrainingLoop(accelerator, task, arguments, Budget(accelerator, task, arguments))

    return make


def watched(loop, monkeypatch):
    """Trains, and gives where a step has waited for the device: from the batch to the optimizer's work."""
    found, steps = [], []
    train_batch = TrainingLoop._train_batch

    def watched_batch(self, batch):
        model = self.accelerator.unwrap_model(self.model)
        tensors = [*model.parameters(), *model.buffers(), *(v for v in batch.values() if isinstance(v, torch.Tensor))]
        if self.ema is not None:
            tensors += [*self.ema.module.parameters(), *self.ema.module.buffers()]
        with NoWaiting(tensors) as no_waiting:
            train_batch(self, batch)
        steps.append(len(no_waiting.on_device) - len(tensors))
        found.extend(no_waiting.found)

    monkeypatch.setattr(TrainingLoop, "_train_batch", watched_batch)
    monkeypatch.setattr("hf_vit.trainer.run_folder.write_card", lambda folder: None)
    loop.train()
    assert len(steps) >= 4 and min(steps) > 100  # tensors were followed
    return found


@pytest.mark.parametrize("more", [[], ["--loss_type=bce", "--gradient_accumulation_steps=2", "--max_grad_norm=0"]])
def test_no_step_on_images_waits_for_the_device(make_loop, monkeypatch, more):
    assert watched(make_loop(*IMAGES, *more), monkeypatch) == []


def test_a_mask_taken_as_it_is_masks_as_transformers_does(monkeypatch):
    """The way off the CPU, taken on it."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    model = HfTransformerForConditionalGeneration(HfTransformerConfig(vocab_size=60, **sizes, dropout=0.0))
    inputs = batch()
    assert not inputs["attention_mask"].all()

    def gradients():
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    taken = []

    def broadcast(attention_mask=None, **options):
        taken.append(attention_mask)
        return broadcast_mask(attention_mask)

    monkeypatch.setattr("transformers.masking_utils.create_bidirectional_mask", broadcast)
    torch.testing.assert_close(gradients(), expected)
    assert len(taken) == 2


def test_no_step_on_texts_waits_for_the_device(make_loop, monkeypatch):
    assert watched(make_loop(*TEXTS), monkeypatch) == []


def by_loss(self, output, sample_key):
    float(output.loss)


def by_norm(self, number, learning_rate, gradient_norm, received):
    if gradient_norm > 1:
        pass


def by_average(self, model):
    next(model.parameters()).sum().tolist()


@pytest.mark.parametrize(
    ("owner", "method", "waits"),
    [(StepWatch, "add", by_loss), (StepWatch, "close", by_norm), (WeightAverage, "update_parameters", by_average)],
)
def test_a_step_that_waits_is_found(make_loop, monkeypatch, owner, method, waits):
    original = getattr(owner, method)

    def waiting(self, *arguments):
        waits(self, *arguments)
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, waiting)
    found = watched(make_loop(*IMAGES), monkeypatch)
    assert len(found) >= 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts what a GPU is waited for")
@pytest.mark.parametrize("argv", [IMAGES, TEXTS], ids=["images", "texts"])
def test_no_step_on_a_gpu_waits_for_it(make_loop, monkeypatch, argv):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    train_batch, steps = TrainingLoop._train_batch, []

    def watched_batch(self, batch):
        # The first step makes the optimizer's state, and loads what kernels need.
        torch.cuda.set_sync_debug_mode("error" if steps else "default")
        try:
            train_batch(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(self.state.step)

    monkeypatch.setattr(TrainingLoop, "_train_batch", watched_batch)
    monkeypatch.setattr("hf_vit.trainer.run_folder.write_card", lambda folder: None)
    make_loop(*argv).train()
    assert len(steps) == 4


def watch_of(tmp_path, parameter):
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    return StepWatch(Accelerator(cpu=True), optimizer, tmp_path), optimizer


def make_step(watch, optimizer, parameter, number, values, keys=(0,)):
    """An optimizer step whose batches have these losses, each the product of its value and the parameter's sum."""
    optimizer.zero_grad()
    for value, key in zip(values, keys):
        loss = (value * parameter).sum()
        loss.backward()
        watch.add(StepOutput(loss, {"half": loss / 2}), np.array([[0, key, 0]]))
    watch.close(number, 0.1, parameter.grad.norm(), received=0)
    optimizer.step()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights_and_is_told_a_step_late(tmp_path, bad):
    parameter = torch.nn.Parameter(torch.ones(3))
    watch, optimizer = watch_of(tmp_path, parameter)
    make_step(watch, optimizer, parameter, 1, [1.0, 2.0], keys=(4, 5))
    assert list(watch.read(newest=False)) == []
    before = parameter.detach().clone()
    state = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    make_step(watch, optimizer, parameter, 2, [1.0, bad], keys=(6, 7))
    (first,) = watch.read(newest=False)
    assert first[""] == pytest.approx([3.0, 6.0]) and first["half"] == pytest.approx([1.5, 3.0])
    make_step(watch, optimizer, parameter, 3, [1.0])  # after it no step is made, however good it is
    assert torch.equal(parameter, before)
    assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in state.items())
    with pytest.raises(
        FloatingPointError, match=r"at step 2: loss \[.*\], in half, .* samples \[7\]; checkpoints are in"
    ):
        list(watch.read(newest=False))


def test_a_guarded_optimizer_makes_the_steps_of_an_unguarded_one(tmp_path):
    guarded, alone = (torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2))
    watch, optimizer = watch_of(tmp_path, guarded)
    other = torch.optim.AdamW([alone], lr=0.1, fused=True)
    for number in range(1, 5):
        make_step(watch, optimizer, guarded, number, [0.3 * number])
        other.zero_grad()
        (0.3 * number * alone).sum().backward()
        other.step()
    assert torch.equal(guarded, alone)
    values = [value for step in watch.read(newest=True) for value in step[""]]
    assert len(values) == 4 and list(watch.read(newest=True)) == []


def test_every_term_of_the_loss_is_recorded_and_tracked(tmp_path, tiny_run):
    folder = tmp_path / "run"
    flags = ["--teacher", tiny_run, "--distillation_alpha=0.3", "--per_device_train_batch_size=20"]
    flags += ["--with_tracking", "--logging_steps=5", "--gradient_accumulation_steps=2"]
    finish(*TINY, *flags, "--num_train_epochs=2", "--output_dir", folder)
    record = json.loads((folder / "run.json").read_text())
    for row in record["epochs"]:
        terms = row["train_terms"]
        assert set(terms) == {"label_loss", "teacher_loss"}
        assert 0.7 * terms["label_loss"] + 0.3 * terms["teacher_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
    events = EventAccumulator(str(next(path.parent for path in (folder / "logs").rglob("events.*")))).Reload()
    assert {"train_loss", "train_label_loss", "train_teacher_loss"} <= set(events.Tags()["scalars"])
