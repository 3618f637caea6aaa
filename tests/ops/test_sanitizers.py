"""The CUDA code on the host, in processes with the address and undefined behaviour sanitizers."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from ops.backends import SANITIZERS, build_host

PARTS = 4


def run_sanitized(operator, module, *arguments):
    """What a module prints that runs an operator's CUDA code."""
    build_host(operator, *SANITIZERS)
    compiler = os.environ.get("CXX", "g++")
    # With C++'s own library, in which the sanitizer looks up functions when it starts.
    runtimes = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        # Python's own memory is not freed at exit. No access is allowed to so many bytes around
        # each tensor and each block's shared memory: a row of small_shapes.py has at most 960 in
        # float32. More would take gigabytes, as all memory of Python is surrounded so.
        "ASAN_OPTIONS": "detect_leaks=0:redzone=1024:quarantine_size_mb=16",
        "PYTHONPATH": path.rstrip(os.pathsep),
    }
    run = subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["dcnv4", "flash_deform_attn", "bev_cross_attn"])
def test_sanitizers_find_nothing_on_host(operator):
    run_sanitized(operator, "ops.sanitized_run", operator)


def check_small_shapes(first, step, least):
    printed = run_sanitized("dcnv4", "ops.dcnv4.small_shapes", first, step)
    assert int(printed.split()[0]) >= least
    assert all(int(count) >= least / 8 for count in re.findall(r"_kernel:(\d+)", printed))
    assert len(re.findall("_kernel:", printed)) == 4


@pytest.mark.slow
def test_some_small_shapes_on_host():
    check_small_shapes(0, 997, least=350)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_every_small_shape_on_host(part):
    check_small_shapes(part, PARTS, least=200_000 / PARTS)
