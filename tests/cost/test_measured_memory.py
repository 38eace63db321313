"""The forecast beside the memory that a process takes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from hf_vit.cost import Setup, model_config, vit_memory


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured_rise(setup):
    """Bytes by which resident memory rises over that of the loaded model in a step of a process of its own."""
    import torch

    from hf_vit import HfViTForImageClassification

    torch.set_num_threads(1)
    model = HfViTForImageClassification(config_of(setup)).train(setup.training)
    if setup.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters())
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=setup.mixed_precision == "bf16")

    def step(images):
        with torch.set_grad_enabled(setup.training), autocast:
            total = model(images).logits.sum()
        if setup.training:
            total.backward()
            optimizer.step()

    step(torch.zeros(1, 3, 640, 640))  # gradients and what the optimizer keeps are there from now on
    images = torch.ones(setup.batch_size, 3, 640, 640)
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


def config_of(setup):
    return model_config("vit_tiny_patch16_640", num_hidden_layers=4, attn_implementation=setup.attn_implementation)


SETUPS = (
    Setup(32, attn_implementation="eager"),
    Setup(64),
    Setup(8, training=True, attn_implementation="eager"),
    Setup(12, training=True),
    Setup(32, training=True, gradient_checkpointing=True),
    Setup(24, training=True, mixed_precision="bf16"),
    Setup(64, training=True, mixed_precision="bf16", gradient_checkpointing=True),
)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("number", range(len(SETUPS)))
def test_peak_memory_is_within_a_tenth_of_the_forecast(number):
    # Large blocks are given back at once, so that no freed ones are counted.
    environment = {**os.environ, "HF_VIT_CPU_PATHS": "plain", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, __file__, str(number)]
    measured = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    memory = vit_memory(config_of(SETUPS[number]), SETUPS[number])
    assert measured > 0.75 * 2**30
    assert memory.activations + memory.working == pytest.approx(measured, rel=0.1)


if __name__ == "__main__":
    print(measured_rise(SETUPS[int(sys.argv[1])]))
