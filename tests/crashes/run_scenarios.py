"""Builds the library that injects faults, and runs scenarios under it."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def run_scenarios(names, folder):
    """Runs scenarios of ``scenarios.py`` with a fault at every file operation, in a subprocess.

    Returns:
        By scenario, the number of its file operations, and a list of what was wrong.
    """
    library = folder / "faulty_files.so"
    compiler = [os.environ.get("CXX", "g++"), "-x", "c", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run([*compiler, FOLDER / "faulty_files.c", "-o", library, "-ldl"], check=True)
    command = [sys.executable, FOLDER / "enumerate_faults.py", folder / "files", *names]
    path = os.pathsep.join((str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": path}
    # A forked child would wait for OpenMP threads that it does not have.
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines())
