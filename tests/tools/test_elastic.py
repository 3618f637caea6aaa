"""train.py under the launchers of docs/training.md; a process that is killed is started again."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_python

pytest.importorskip("mmengine", reason="mmengine is not installed")

TRAIN = Path(__file__).resolve().parents[2] / "tools" / "train.py"
TOY = """
import json
import os
import signal
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS


@DATASETS.register_module()
class ToySet(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"inputs": index + torch.rand(4)}


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, inputs, mode):
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}


@HOOKS.register_module()
class KillOnce(Hook):
    priority = "LOWEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 1:
            with open("losses.jsonl", "a") as file:
                print(json.dumps([runner.iter, outputs["loss"].item()]), file=file)
            # In the middle of the second epoch.
            if runner.iter == 4 and not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""
CONFIG = """
custom_imports = dict(imports=["toy"])
model = dict(type="Toy")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type="ToySet"),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=1e-4))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
custom_hooks = [dict(type="dcnv4_mm.SeedStepsHook"), dict(type="KillOnce")]
randomness = dict(seed=0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a toy config, of which processes find the module."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.slow
def test_a_killed_process_is_started_again(folder, monkeypatch):
    """The steps that are done again have the same losses."""
    # Otherwise, in torch 2.13, restarted processes find the addresses of the old ones and wait.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    program = [TRAIN, "config.py", "--launcher=pytorch", "--resume", "--work-dir=out"]
    run_python("-m", *launcher, *program, cwd=folder)
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [step for step, _ in lines] == [*range(5), *range(3, 9)]
    losses = [loss for _, loss in lines]
    assert losses[3:5] == pytest.approx(losses[5:7], rel=0, abs=1e-6)
    assert len(set(losses)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
def test_two_machines(folder, launcher):
    """Both of them this one; what srun sets in the environment of its tasks is set by hand."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    (folder / "killed").touch()
    program = [TRAIN, "config.py", f"--launcher={launcher}", "--work-dir=out"]
    processes = []
    for rank in ("0", "1"):
        if launcher == "pytorch":
            options = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
            command, environment = ["-m", "torch.distributed.run", *options], {}
        else:
            command, environment = [], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *program],
                cwd=folder,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        # One whose partner has failed waits for it.
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed[0][-4000:]
    lines = (folder / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == list(range(9))
