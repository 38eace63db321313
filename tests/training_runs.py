"""Training processes that start in no time: forks of a server that has imported everything once."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

from filelock import FileLock

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["hf_vit.trainer.loop", "hf_vit.tasks.image_classification.task", "training_runs"])

# The smallest model, and no more data than a few steps need.
TINY = [
    "--train_val_split=0",
    "--max_train_samples=100",
    "--image_size=8",
    "--num_train_epochs=3",
    "--card_num_samples=0",
    "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
    "--dataloader_num_workers=0",
]


def _run(argv, slow_down, environment):
    os.environ.update(environment)
    if "LOG" in environment:
        log = os.open(environment["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
    os.setsid()  # a process group of its own, as under a shell or torchrun
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests themselves were started under
    multiprocessing.set_start_method("fork", force=True)  # of loader workers
    import torch

    from hf_vit import train
    from hf_vit.tasks.image_classification.task import ImageClassification
    from hf_vit.tasks.task import StepOutput
    from hf_vit.trainer import loop, run_folder

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        # Accelerate offers FSDP on GPUs alone, where torch shards on a CPU just as well.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    torch.set_num_threads(1)
    run_folder.write_card = lambda folder: None  # another module's work, and slow
    after_step = loop.TrainingLoop._after_step

    def slowly(self):
        time.sleep(slow_down)
        after_step(self)

    loop.TrainingLoop._after_step = slowly
    evaluate = loop.TrainingLoop.evaluate

    def marked(self, *args, **kwargs):
        Path(os.environ["EVALUATION_MARK"]).touch()
        time.sleep(1)
        return evaluate(self, *args, **kwargs)

    if "EVALUATION_MARK" in os.environ:
        loop.TrainingLoop.evaluate = marked
    if os.environ.get("POISONED_RANK", "none") == os.environ.get("RANK"):
        step = ImageClassification.training_step

        def poisoned(self, model, batch):
            output = step(self, model, batch)
            return StepOutput(output.loss * float("nan"), output.logs)

        ImageClassification.training_step = poisoned
    train.main(argv)


def start(*argv, slow_down=0.0, environment=None):
    """A process that trains with the arguments `argv`, pausing `slow_down` seconds after every step; with
    EVALUATION_MARK in its environment, it makes that file and pauses for a second before it evaluates, with LOG it
    writes there what would go to the terminal, and with POISONED_RANK that rank's losses are not numbers."""
    process = _SERVER.Process(target=_run, args=([str(each) for each in argv], slow_down, environment or {}))
    process.start()
    return process


def start_all(*argv, num_processes=1, slow_down=0.0, environment=None):
    """One process, or several CPU ranks that train together."""
    environments = [{"ACCELERATE_USE_CPU": "true", **(environment or {})}]
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        world = {**environments[0], **address, "WORLD_SIZE": str(num_processes)}
        environments = [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    return [start(*argv, slow_down=slow_down, environment=environment) for environment in environments]


def finish(*argv, num_processes=1, environment=None):
    """Trains to the end, on several CPU ranks where asked to; fails when a process does."""
    processes = start_all(*argv, num_processes=num_processes, environment=environment)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_processes


def tiny_run(tmp_path_factory, worker_id):
    """The folder of a run with the arguments TINY and no others, trained once for all processes of a test session. It
    is read by many tests: none may write into it."""
    above = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = above / "tiny_run"
    with FileLock(above / "tiny_run.lock"):
        if not (folder / "done").is_file():
            finish(*TINY, "--output_dir", folder)
            (folder / "done").touch()
    return folder
