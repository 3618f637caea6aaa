"""Where kernels run, and the CUDA library as its build shows it without a GPU."""

import re
import runpy
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import setuptools
from helpers import ROOT
from ops.backends import BACKENDS, HOST_RUNS, Backend, host_cuda, open_backend, parameter


class CudaBuild(NamedTuple):
    """The library, what the compiler reported, and a folder of PTX for every operator."""

    library: Path
    log: str
    ptx: Path

    def kernels(self, operator, direction):
        """Name -> PTX of the kernels of ``fwd`` or ``bwd``."""
        found = {}
        for path in (self.ptx / operator).rglob(f"kernels_{direction}*.ptx"):
            for body in path.read_text().split(".entry ")[1:]:
                found[body.split("(")[0].strip()] = body
        return found

    def registers(self, names):
        """Registers of the named kernels."""
        used = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
        found = {name: int(count) for name, count in re.findall(used, self.log, re.S)}
        return [found[name] for name in names]


def pytest_collection_modifyitems(config, items):
    """Leaves out what runs for many minutes, unless its marker is requested."""
    for marker in ("ptx", "exhaustive"):
        if marker in config.option.markexpr:
            continue
        left_out = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(marker)]


@contextmanager
def functions_of_setup():
    """What setup.py defines, to build for one architecture; and what undoes later changes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(setuptools, "setup", lambda **_: None)
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("DCNV4_MM_CUDA_ARCHS", "90")
        functions = runpy.run_path("setup.py")
        if functions["find_nvcc"]() is None:
            pytest.skip("needs nvcc")
        yield functions, monkeypatch


@pytest.fixture
def setup_functions():
    with functions_of_setup() as (functions, _):
        yield functions


@pytest.fixture(scope="session")
def cuda_build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    with functions_of_setup() as (functions, monkeypatch):
        build = functions["build_cuda_library"]
        sources = functions["cuda_sources"]()
        for index, (source, flags) in enumerate(sources):
            if source.endswith(".cu"):
                # What is kept of two operators or storage types has the same names.
                kept = folder / Path(source).parent.name / str(index)
                kept.mkdir(parents=True)
                flags += ["-Xptxas=-v", "--keep", f"--keep-dir={kept}"]
        monkeypatch.setitem(build.__globals__, "cuda_sources", lambda: sources)
        log = folder / "log"
        library = folder / "libdcnv4_mm_cuda.so"
        with log.open("w") as file:
            run = subprocess.run
            # Compilers write to the file; those that run at once must not mix their lines.
            monkeypatch.setattr(
                subprocess, "run", lambda *args, **kwargs: run(*args, **{"stderr": file, **kwargs})
            )
            build(library, folder)
    return CudaBuild(library, log.read_text(), folder)


@pytest.fixture(params=[parameter(name) for name in BACKENDS])
def backend(request):
    """Where the kernels of the operator run that the test's folder is named after."""
    with open_backend(request.param, request.path.parent.name) as backend:
        yield backend


@pytest.fixture
def host(request):
    """The operator's CUDA code, compiled for the host."""
    return host_cuda(request.path.parent.name)


@pytest.fixture
def hosts(request):
    """Every way to run it."""
    return [Backend(name, request.path.parent.name) for name in HOST_RUNS]
