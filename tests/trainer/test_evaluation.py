"""Evaluations counted batch by batch on several processes, against those of one."""

import contextlib
import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hf_vit.tasks.task import Evaluator
from hf_vit.trainer import evaluation
from hf_vit.trainer.loaders import prepare_evaluation_loader

NUM_CLASSES = 3


class Counting(Evaluator):
    """Every kind of state: numbers, arrays and lists, at the top and below."""

    def __init__(self):
        self.deep = {"counts": np.zeros(NUM_CLASSES, np.int64), "total": 0}
        self.state = {"deep": self.deep, "seen": [], "sum": 0.0}
        self.sizes = []

    def step(self, model, batch):
        self.sizes.append(len(batch["values"]))
        return model(batch["values"])

    def update(self, batch, outputs):
        assert outputs.shape == batch["values"].shape and isinstance(batch["sample_key"], np.ndarray)
        self.deep["counts"] += np.bincount(batch["labels"], minlength=NUM_CLASSES)
        self.deep["total"] += len(outputs)
        self.state["seen"] += batch["sample_key"][:, 1].tolist()
        self.state["sum"] += float(outputs.sum())

    def compute(self):
        return {"counts": self.deep["counts"].tolist(), "mean": self.state["sum"] / self.deep["total"]}


def samples(count):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    keys = torch.tensor([[0, index, 0] for index in range(count)])
    return [
        {"values": torch.tensor(float(index)), "labels": label, "sample_key": key}
        for index, (label, key) in enumerate(zip(labels, keys))
    ]


def run(count, num_processes, monkeypatch, loader=None):
    """The evaluators of processes, here threads, that have evaluated `count` samples in batches of 4."""
    gathered, barrier, rank = {}, threading.Barrier(num_processes), threading.local()
    evaluators, found, errors = [Counting() for _ in range(num_processes)], {}, []

    def gather_object(objects):
        gathered[rank.index] = copy.deepcopy(objects)  # what comes from another process is a copy
        barrier.wait(10)
        everything = [each for index in range(num_processes) for each in gathered[index]]
        barrier.wait(10)
        return everything

    def work(index):
        rank.index = index
        accelerator = SimpleNamespace(
            num_processes=num_processes,
            process_index=index,
            autocast=contextlib.nullcontext,
            dataloader_config=SimpleNamespace(),
            prepare=lambda loader: prepare_data_loader(loader, num_processes=num_processes, process_index=index),
        )
        try:
            batches = prepare_evaluation_loader(accelerator, loader or DataLoader(samples(count), batch_size=4))
            found[index] = evaluation.evaluate(accelerator, torch.nn.Identity(), batches, evaluators[index])
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    monkeypatch.setattr(evaluation, "gather_object", gather_object)
    threads = [threading.Thread(target=work, args=(index,)) for index in range(num_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return evaluators, found


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 8, 9, 13, 24])
def test_every_process_has_counted_each_sample_once(monkeypatch, count, num_processes):
    evaluators, found = run(count, num_processes, monkeypatch)
    labels = torch.stack([sample["labels"] for sample in samples(count)])
    expected = {"counts": torch.bincount(labels, minlength=NUM_CLASSES).tolist(), "mean": (count - 1) / 2}
    for index, evaluator in enumerate(evaluators):
        metrics, num_examples = found[index]
        assert (metrics, num_examples) == (expected, count)
        assert sorted(evaluator.state["seen"]) == list(range(count))
    # No process may stand still while another one runs a model whose weights they share out.
    assert len({len(evaluator.sizes) for evaluator in evaluators}) == 1


def test_a_loader_that_leaves_samples_out_is_an_error(monkeypatch):
    loader = DataLoader(samples(8), sampler=range(4), batch_size=4)
    with pytest.raises(AssertionError, match="8 samples were to be evaluated, and 4 were"):
        run(8, 1, monkeypatch, loader)
