"""A synthetic nuScenes with its info files, made once as a user would make it."""

import pytest
from helpers import ROOT, run_python

SIZE = (400, 225)


@pytest.fixture(scope="session")
def nuscenes_root(tmp_path_factory):
    """Two scenes of six keyframes, one to train on and one to evaluate on."""
    root = tmp_path_factory.mktemp("nuscenes") / "set"
    tool = ROOT / "dev" / "generators" / "synthetic_nuscenes.py"
    options = ("--train=1", "--val=1", "--keyframes=6", f"--size={SIZE[0]}x{SIZE[1]}")
    run_python(tool, root, *options, cwd=root.parent)
    return root


@pytest.fixture(scope="module")
def nusc(nuscenes_root):
    """The devkit's tables of the synthetic nuScenes."""
    from nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(nuscenes_root), verbose=False)
