"""Dry runs of the GPU benchmark on the CPU: arguments, peers, table and plot."""

import csv
import subprocess
import sys

import pytest
from helpers import ROOT

# Stands for the released package, which only builds where there is a GPU.
ORIGINAL = """
from dcnv4_mm.ops.functional import dcnv4

class DCNv4Function:
    @staticmethod
    def apply(value, offset_mask, kh, kw, sh, sw, ph, pw, dh, dw, groups, width, scale, step, rc):
        assert (kh, kw, sh, sw, ph, pw, dh, dw, scale, rc) == (3, 3, 1, 1, 1, 1, 1, 1, 1.0, 0)
        assert groups * width == value.shape[-1]
        assert value.shape[0] % step == 0
        return dcnv4(value, offset_mask, groups=groups)
"""


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    command += ["--repeats", "1", "--eager-calls", "1", "--out", "out"]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def dry_run(folder, stage):
    """Runs a stage; gives the rows of its table, and what it said."""
    cases = [] if stage in ("attention", "bev") else ["--cases", "2x5x7x4x8"]
    result = run(folder, stage, "--device", "cpu", *cases)
    assert result.returncode == 0, result.stderr
    (table,) = (folder / "out").glob(f"*_gpu-{stage}.csv")
    assert table.with_suffix(".png").stat().st_size > 1000
    with open(table, newline="") as file:
        return list(csv.DictReader(file)), result.stdout


@pytest.mark.parametrize(
    ("stage", "rows"),
    # Modes by dtypes; two forms, two directions, three dtypes and cases.
    [("bench", 10), ("attention", 36), ("bev", 24)],
)
def test_stage(stage, rows, tmp_path):
    first, _ = dry_run(tmp_path, stage)
    assert len(first) == rows
    assert all(float(row["microseconds"]) > 0 and row["commit"] for row in first)
    again, said = dry_run(tmp_path, stage)
    assert again == first, "what is in the table must not be measured again"
    assert " us" not in said


def test_peers(tmp_path):
    (tmp_path / "DCNv4").mkdir()
    (tmp_path / "DCNv4" / "functions.py").write_text(ORIGINAL)
    rows, said = dry_run(tmp_path, "peers")
    found = {row["contender"] for row in rows}
    assert {"dcnv4", "original DCNv4", "grid_sample", "convolution 3x3"} <= found
    assert "torchvision deform_conv2d      n/a: " in said
    for row in rows:
        if row["contender"] in ("dcnv4", "original DCNv4", "grid_sample"):
            limit = 1e-2 if row["dtype"] == "bfloat16" else 1e-3
            assert row["measured"] == "backward" or float(row["relative_error"]) < limit


def test_needs_a_device(tmp_path):
    result = run(tmp_path, "bench")
    assert result.returncode == 2
    assert "no CUDA device is visible; --device cpu does a dry run" in result.stderr


def test_bad_case(tmp_path):
    result = run(tmp_path, "bench", "--cases", "3x4")
    assert "expected batch, height, width, groups and channels" in result.stderr
