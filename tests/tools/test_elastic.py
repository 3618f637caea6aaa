"""train.py under the launchers of docs/training.md; a process that is killed is started again."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_python

pytest.importorskip("mmengine", reason="mmengine is not installed")

TRAIN = ROOT / "tools" / "train.py"
TOY = Path(__file__).with_name("toy_config.py")
HOOKS = 'custom_hooks = [dict(type="dcnv4_mm.SeedStepsHook"), dict(type="KillOnce")]'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a toy config, of which processes find the module."""
    (tmp_path / "config.py").write_text(f"_base_ = {str(TOY)!r}\n{HOOKS}")
    monkeypatch.setenv("PYTHONPATH", str(TOY.parent), prepend=os.pathsep)
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
