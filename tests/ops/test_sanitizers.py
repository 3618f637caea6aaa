import os
import subprocess
import sys

import pytest
from helpers import ROOT
from ops.backends import SANITIZERS, build_host


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["dcnv4", "flash_deform_attn", "bev_cross_attn"])
def test_sanitizers_find_nothing_on_host(operator):
    """Runs problems in a process with the address and undefined behaviour sanitizers."""
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
        # Python's own memory is not freed at exit.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": path.rstrip(os.pathsep),
    }
    run = subprocess.run(
        [sys.executable, "-P", "-m", "ops.sanitized_run", operator],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
