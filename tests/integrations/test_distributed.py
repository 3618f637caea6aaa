"""Data-parallel training on two processes gives the gradients of one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("distributed_gradients.py")


def test_two_processes_give_the_gradients_of_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    result = subprocess.run([*torchrun, SCRIPT, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    spec = importlib.util.spec_from_file_location("distributed_gradients", SCRIPT)
    single = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(single)
    expected = single.gradients(single.make_model(), single.make_images())
    for rank in (0, 1):
        sharded = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for gradient, reference in zip(sharded, expected, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-10)
