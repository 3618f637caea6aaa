"""The rules that conftest.py adds to every run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TESTS = """
import pytest

@pytest.mark.gpu
def test_on_gpu():
    pass

def test_here():
    pass

def test_skipped():
    pytest.skip("not on any list")
"""


@pytest.mark.parametrize(
    ("arguments", "exit_status", "said"),
    [
        (["-k", "gpu or here"], 0, "1  needs a CUDA device"),
        (["-k", "skipped"], 1, "not on any list   NOT in expected_skips.txt"),
        (["-m", "gpu"], 1, "1 skipped"),
    ],
    ids=["expected", "unexpected", "promised"],
)
def test_skips(arguments, exit_status, said, tmp_path):
    for name in ("conftest.py", "expected_skips.txt"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS)
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\nmarkers = gpu: needs a CUDA device\n")
    command = [sys.executable, "-m", "pytest", "-c", settings, *arguments, tmp_path]
    # No device is visible, here or on a machine that has one.
    env = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == exit_status, result.stdout
    assert said in result.stdout


def test_empty_tensors_hold_nan():
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.ones(1000)).isnan().all()
