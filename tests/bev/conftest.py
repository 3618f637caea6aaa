"""A synthetic nuScenes with its info files, made once as a user would make it."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

SIZE = (400, 225)


@pytest.fixture(scope="session")
def nuscenes_root(tmp_path_factory):
    """Two scenes of six keyframes, one to train on and one to evaluate on."""
    root = tmp_path_factory.mktemp("nuscenes") / "set"
    tools = ROOT / "tools" / "data"
    # The tools need the package under test, wherever it was imported from.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    size = "x".join(map(str, SIZE))
    for command in (
        ["synthetic_nuscenes.py", root, "--train=1", "--val=1", "--keyframes=6", f"--size={size}"],
        ["prepare_nuscenes.py", root, "--version=v1.0-mini"],
    ):
        result = subprocess.run(
            [sys.executable, tools / command[0], *command[1:]],
            capture_output=True,
            text=True,
            env=env,
        )
        assert result.returncode == 0, result.stderr
    return root
