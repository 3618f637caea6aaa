"""Trains a small model in other processes, injects faults, and records the losses.

The processes are forked from a server that has imported the slow modules.
"""

import builtins
import errno
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from dcnv4_mm.engine import install

# The last two are imported by mmengine's runner and by torch's optimizers when they are built.
IMPORTS = ["torch", "mmengine.runner", "dcnv4_mm.engine", "matplotlib.pyplot", "torch._dynamo"]
STEPS = 3
"""Steps in an epoch."""


class Noisy(torch.utils.data.Dataset):
    """Samples with noise from every generator that augmentations use."""

    def __init__(self, processes):
        self.processes = processes
        self.metainfo = {"classes": ("a",)}

    def __len__(self):
        return 2 * STEPS * self.processes

    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return {"inputs": torch.tensor([float(index), *noise])}


class Dropping(BaseModel):
    """A model that draws random numbers itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs, mode):
        outputs = self.layers(inputs)
        return {"loss": outputs.square().mean()} if mode == "loss" else [outputs]


class LossHook(Hook):
    """Appends every loss to a file of this process; can kill the last process in epoch two."""

    priority = "LOWEST"

    def __init__(self, folder, last_signal):
        self.folder, self.last_signal = Path(folder), last_signal

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        line = json.dumps([runner.iter, outputs["loss"].item()])
        with (self.folder / f"rank{runner.rank}.jsonl").open("a") as file:
            file.write(line + "\n")
        last = runner.rank == runner.world_size - 1
        if self.last_signal and last and runner.iter == STEPS + 1:
            os.kill(os.getpid(), self.last_signal)


def fail_in_second_checkpoint(fault):
    """Makes this process fail while it writes the checkpoint of the second epoch."""

    class Failing(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            if fault == "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), signal.SIGKILL)

    def open_failing(path, mode="r", *args, _open=open, **kwargs):
        if "epoch_2" in str(path) and "w" in mode:
            return Failing(path, mode)
        return _open(path, mode, *args, **kwargs)

    builtins.open = io.open = open_failing


def join(rank, processes, port):
    """Makes this process one of several, as a launcher does."""
    install()
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if processes > 1:
        torch.distributed.init_process_group("gloo")


def train(rank, processes, port, folder, options):
    """One process of a training run."""
    join(rank, processes, port)
    if "saving" in options:
        fail_in_second_checkpoint(options["saving"])
    by_epoch, workers = options.get("by_epoch", True), options.get("workers", 0)
    loader = {
        "batch_size": 2,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "dataset": Noisy(processes),
        "sampler": {"type": "DefaultSampler" if by_epoch else "InfiniteSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
    }
    checkpoint = {"type": "dcnv4_mm.SafeCheckpointHook", "interval": 1, "by_epoch": by_epoch}
    if by_epoch:
        train_cfg = {"by_epoch": True, "max_epochs": 3}
    else:
        train_cfg = {"by_epoch": False, "max_iters": 3 * STEPS}
        checkpoint["interval"] = STEPS
    torch.manual_seed(0)
    runner = Runner(
        model=Dropping(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}},
        default_hooks={"checkpoint": {**checkpoint, **options.get("checkpoint", {})}},
        custom_hooks=[{"type": "dcnv4_mm.SeedStepsHook"}, LossHook(folder, options.get("signal"))],
        randomness={"seed": 0},
        resume=options.get("resume", False),
        launcher="pytorch" if processes > 1 else "none",
        log_level="WARNING",
        cfg={"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}},
    )
    runner.train()


def run(folder, processes=1, target=train, **options):
    """Trains, and returns the exit codes. If one process fails, all end, as under a launcher.

    Args:
        folder: Work folder.
        processes: How many.
        target: What each process does.
        **options: ``workers``, ``by_epoch``, ``resume``, settings of the ``checkpoint`` hook, a
            ``signal`` that ends the last process in mid-epoch, or a fault while ``saving``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    Path(folder).mkdir(exist_ok=True)
    started = [
        context.Process(target=target, args=(rank, processes, port, folder, options))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    while any(process.is_alive() for process in started):
        multiprocessing.connection.wait([p.sentinel for p in started if p.is_alive()], timeout=60)
        if any(process.exitcode for process in started):
            for process in started:
                process.kill()
    return [process.exitcode for process in started]


def losses(folder, rank=0):
    """Step -> the loss that was recorded last."""
    lines = Path(folder, f"rank{rank}.jsonl").read_text().splitlines()
    return dict(json.loads(line) for line in lines)
