"""Wheels of the project, and empty environments to try them in."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run_command(*command, cwd, expect=0, **env) -> str:
    """Runs a command as a user would; returns what it printed."""
    # It must see neither the sources nor the settings of this run.
    inherited = {k: v for k, v in os.environ.items() if not re.match("PYTHONPATH|DCNV4_MM_", k)}
    # `mim` and what it starts are looked up on PATH.
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == expect, f"{command}\n{result.stdout[-8000:]}"
    return result.stdout


def with_dependencies(name: str, found: set[str]) -> set[str]:
    """Adds ``name`` and all that it needs at run time to ``found``."""
    found.add(name)
    for requirement in distribution(name).requires or ():
        needed = re.match(r"[\w.-]+", requirement)[0]
        if "extra ==" not in requirement and needed not in found:
            with_dependencies(needed, found)
    return found


@pytest.fixture(scope="session")
def run():
    return run_command


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory):
    """Makes a virtual environment with nothing but links to some installed distributions."""

    def make(*names: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        run_command(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in set().union(*(with_dependencies(name, set()) for name in names)):
            dist = distribution(name)
            for top in {file.parts[0] for file in dist.files} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(dist.locate_file(top))
        return folder / "bin" / "python"

    return make


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel with kernels, as `make wheel` builds it; CUDA kernels are for one architecture."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    settings = dict(DCNV4_MM_REQUIRE_EXT="1", TORCH_CUDA_ARCH_LIST="9.0")
    run_command(*PIP, "wheel", *flags, ".", cwd=ROOT, **settings)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def release_wheel(tmp_path_factory) -> Path:
    """The release wheel of `make wheel`; its CUDA kernels are for one architecture."""
    folder = tmp_path_factory.mktemp("release_wheel")
    # Whatever environment runs the tests is complete.
    options = ("-o", ".venv/.complete", f"BIN={Path(sys.executable).parent}", f"DIST={folder}")
    run_command("make", *options, "wheel", cwd=ROOT, DCNV4_MM_CUDA_ARCHS="90")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run_command(sys.executable, "-c", build, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def pure_wheel(tmp_path_factory, make_environment, sdist) -> tuple[Path, str]:
    """The wheel that comes out where torch is missing, and what pip printed while building it."""
    folder = tmp_path_factory.mktemp("pure_wheel")
    python = make_environment("setuptools")
    flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    printed = run_command(*PIP, f"--python={python}", "wheel", "-v", *flags, sdist, cwd=folder)
    return next(folder.glob("*.whl")), printed
