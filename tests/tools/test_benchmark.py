"""benchmark.py: it times what it is asked to, and writes the figures down."""

import csv
import subprocess
import sys
import time

import pytest
from helpers import ROOT

pytest.importorskip("mmdet", reason="mmdet is not installed")

pytestmark = pytest.mark.mmdet

TOOLS = ROOT / "tools" / "analysis_tools"
NANO = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark

    yield benchmark
    del sys.modules["benchmark"]


def test_time_of_a_call(benchmark):
    times, _ = benchmark.measure(lambda: time.sleep(0.02), "cpu", 0.1)
    assert len(times) >= 3
    # A busy machine makes it longer, never shorter.
    assert min(times) >= 0.02


def test_memory_of_a_call():
    """In a process of its own: one that has freed much does not ask the system for more."""
    # Two sizes: what a first call of torch takes for itself is in both. Beyond 32 MiB, glibc
    # returns memory to the system when it is freed.
    code = f"""
import sys, torch
sys.path.insert(0, {str(TOOLS)!r})
from benchmark import measure
def held(mib):
    call = lambda: torch.ones(mib * 2**20, dtype=torch.uint8)[0]
    return measure(call, "cpu", 0.05)[1]
small = held(40)
print(held(104) - small)
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) == pytest.approx(64, abs=8)


def test_figures_of_every_batch_size(run_tool, tmp_path):
    options = ("--size", 64, 96, "--seconds", 0.01, "--batch-sizes", 1, 3, "--out", "speed.csv")
    result = run_tool("benchmark.py", NANO, *options, cwd=tmp_path)
    assert result.message is None
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [(row["config"], row["batch_size"]) for row in rows] == [(NANO, "1"), (NANO, "3")]
    for row in rows:
        assert int(row["calls"]) >= 3
        rate = 1e3 * int(row["batch_size"]) / float(row["milliseconds"])
        assert float(row["per_second"]) == pytest.approx(rate, rel=1e-2)
        assert float(row["slowest_milliseconds"]) >= float(row["milliseconds"])
        assert float(row["memory_mib"]) > 100


def test_samples_of_the_test_set(run_tool, tmp_path):
    arguments = (NANO, "--from-dataset", "--seconds", 0.01)
    message = run_tool("benchmark.py", *arguments, cwd=tmp_path).message
    assert "data/mini_coco does not exist" in message
    made = run_tool("mini_coco.py", "data/mini_coco", "--num-train=2", "--num-val=2",
                    cwd=tmp_path)  # fmt: skip
    assert made.message is None
    assert "per_second" in run_tool("benchmark.py", *arguments, cwd=tmp_path).stdout


def test_bad_arguments(run_tool, tmp_path):
    def refusal(*arguments):
        return str(run_tool("benchmark.py", *arguments, cwd=tmp_path).message)

    assert refusal(NANO, "--batch-sizes", 0) == "2"
    assert refusal(NANO, "--out", "nowhere/speed.csv") == "2"
    assert "nope.pth" in refusal(NANO, "--checkpoint", "nope.pth")
    assert "did you mean" in refusal(NANO[:-2])
