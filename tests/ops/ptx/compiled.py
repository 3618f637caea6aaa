"""The CUDA code of an operator as nvcc compiles it, run by an interpreter of its PTX."""

import ctypes
import fcntl
import os
import random
import re
import runpy
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT

ARCHS = (75, 90)
STORAGE_TYPES = ("double", "float", "Half", "BFloat16")
FOLDER = Path(__file__).parent
FAKE_DEVICE = FOLDER.parent / "fake_device"
# Those of setup.py, but for devices nothing is made but PTX.
CUDA_FLAGS = ["-O3", "-std=c++17", "--fmad=false"]
CUDA_FLAGS += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ARCHS]
HOST_FLAGS = "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"
CPP_FLAGS = ["-O2", "-std=c++17", "-Xcompiler=-Wall"]
CPP_FLAGS += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{FAKE_DEVICE}"]
# Of torch, what bindings.cpp puts a function of its own in front of.
WRAPPED = ("torch_get_mutable_data_ptr", "torch_get_const_data_ptr")


class Counters(NamedTuple):
    """What a kernel did: see ``machine.h``."""

    launches: int
    blocks: int
    warps: int
    instructions: int
    thread_instructions: int
    load_requests: int
    load_sectors: int
    store_sectors: int
    atomic_requests: int
    atomic_sectors: int
    shared_passes: int
    shared_passes_at_best: int


@contextmanager
def locked(path):
    """Here no other process is: tests may run in several."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(name, cuda_sources, bindings=None):
    """A library of kernels and the interpreter, and the folder of the kernels' PTX.

    ``cuda_sources`` are paths, each with a storage type. What is up to date is not compiled again.
    """
    nvcc = runpy.run_path(str(ROOT / "csrc/nvcc.py"))["find_nvcc"]()
    if nvcc is None:
        pytest.skip("needs nvcc")
    compilers = runpy.run_path(str(ROOT / "csrc/compilers.py"))
    command = [nvcc, f"-ccbin={compilers['find_compiler']()}", HOST_FLAGS]
    folder = ROOT / "build/ptx"
    ptx, target = folder / name, folder / f"{name}.so"
    ptx.mkdir(parents=True, exist_ok=True)

    def compiled(flags, sources):
        return compilers["compile_objects"]([*command, *flags], sources, folder)

    include = f"-I{ROOT / 'csrc'}"
    with locked(folder / "interpreter.lock"):
        interpreter = [(str(p), []) for p in FOLDER.glob("*.cpp") if p.stem != "bindings"]
        objects = compiled([*CPP_FLAGS, include], interpreter)
    with locked(folder / f"{name}.lock"):
        kernels = []
        for source, storage in cuda_sources:
            # What is kept of two storage types has the same names.
            kept = ptx / storage
            kept.mkdir(exist_ok=True)
            own = [f"-DDCNV4_MM_STORAGE={storage}", "--keep", f"--keep-dir={kept}"]
            kernels.append((str(source), own))
        objects += compiled([include, *CUDA_FLAGS], kernels)
        if bindings:
            flags = [f'-DBINDINGS="{bindings}"', "-DTEST_NAMESPACE=dcnv4_mm_ptx", include]
            objects += compiled([*CPP_FLAGS, *flags], [(str(FOLDER / "bindings.cpp"), [])])
        current = {(storage, Path(source).stem) for source, storage in cuda_sources}
        for path in ptx.rglob("*.*"):
            # Other intermediate files, and PTX of sources that are no more.
            made = path.parent.name, path.name.partition(".")[0]
            if path.suffix != ".ptx" or made not in current:
                path.unlink()
        if not target.exists() or target.stat().st_mtime < max(map(os.path.getmtime, objects)):
            libtorch = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
            wraps = [f"-Xlinker=--wrap={function}" for function in WRAPPED]
            link = [nvcc, "-shared", "-cudart=none", *objects, *wraps, *libtorch]
            compilers["run_into"](target, [*link, "-Xlinker=-z,defs"])
    return target, ptx


class Interpreter:
    """Runs the kernels of a library."""

    def __init__(self, library, ptx):
        torch.ops.load_library(library)
        self.library = ctypes.CDLL(str(library))
        for function in (self.library.ptx_counters, self.library.ptx_kernels):
            function.restype = ctypes.c_char_p
        self.seeds = random.Random(0)
        for path in sorted(ptx.rglob("*.ptx")):
            arch = int(re.search(r"compute_(\d+)", path.name)[1])
            self.library.ptx_load(arch, str(path).encode())

    def use(self, device):
        """Kernels run as on a device of ``fake_device``, in another order each time."""
        seed = ctypes.c_uint32(self.seeds.getrandbits(32))
        assert self.library.ptx_use(device.encode(), seed)

    def kernels(self, arch):
        return {*self.library.ptx_kernels(arch).decode().split()}

    def counters(self):
        """Kernel -> what it did since the last call."""
        lines = [line.split() for line in self.library.ptx_counters().decode().splitlines()]
        return {name: Counters(*map(int, counts)) for name, *counts in lines}


@cache
def ptx_of(operator):
    """The interpreter of an operator's kernels; its operators are ``torch.ops.dcnv4_mm_ptx``."""
    folder = ROOT / "csrc" / operator
    sources = [(path, storage) for path in sorted(folder.glob("*.cu")) for storage in STORAGE_TYPES]
    return Interpreter(*build(operator, sources, folder / "bindings_cuda.cpp"))


def readable(names):
    """Mangled name -> name without namespaces, which differ from file to file."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"(\w+_kernel)<(.*?)>\(", re.sub(r"[(]\w+[)]|dcnv4_mm::", "", text))
    return dict(zip(names, map(" ".join, found), strict=True))
