"""The forecast beside the memory that a process takes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from hf_vit.cost import Setup, vit_config, vit_memory


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured_rise(attn_implementation, training, batch_size):
    """Bytes by which resident memory rises over that of the loaded model in a step of a process of its own."""
    import torch

    from hf_vit import HfViTForImageClassification

    torch.set_num_threads(1)
    config = vit_config("vit_tiny_patch16_640", num_hidden_layers=4, attn_implementation=attn_implementation)
    model = HfViTForImageClassification(config).train(training)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(images):
        with torch.set_grad_enabled(training):
            total = model(images).logits.sum()
        if training:
            total.backward()
            optimizer.step()

    step(torch.zeros(1, 3, 640, 640))  # gradients and what the optimizer keeps are there from now on
    images = torch.ones(batch_size, 3, 640, 640)
    before, peak, ended = resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, resident_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(images)
    ended.set()
    watcher.join()
    return peak - before


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("attn_implementation", "training", "batch_size"),
    [("eager", False, 32), ("eager", True, 8), ("sdpa", True, 12)],
)
def test_peak_memory_is_within_a_tenth_of_the_forecast(attn_implementation, training, batch_size):
    command = [sys.executable, __file__, attn_implementation, str(int(training)), str(batch_size)]
    environment = {**os.environ, "HF_VIT_CPU_PATHS": "plain"}
    measured = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    config = vit_config("vit_tiny_patch16_640", num_hidden_layers=4, attn_implementation=attn_implementation)
    memory = vit_memory(config, Setup(batch_size, training, attn_implementation=attn_implementation))
    assert measured > 2**30
    assert memory.activations + memory.working == pytest.approx(measured, rel=0.1)


if __name__ == "__main__":
    print(measured_rise(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3])))
