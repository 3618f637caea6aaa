"""Where the raw operators run: each test of a kernel is one specification for all of them.

===================  ==============================================================================
``cpu_<set>``        the CPU kernels of an instruction set
``..._on_host``      the CUDA code, compiled for the host (``host_cuda/``), as on a device of
                     ``fake_device/``: every way to sum the gradient of value
``ptx_...``          the CUDA code, compiled by nvcc and interpreted (``ptx/``), in the same ways
``cuda...``          the CUDA kernels on a GPU
===================  ==============================================================================
"""

import ctypes
import hashlib
import itertools
import os
import random
import re
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT
from ops.ptx.compiled import FAKE_DEVICE, STORAGE_TYPES, ptx_of

import dcnv4_mm.ops.functional  # noqa: F401  (defines and loads the operators)
from dcnv4_mm.ops.bev_cross_attn.registration import SCHEMAS as BEV_SCHEMAS
from dcnv4_mm.ops.dcnv4.registration import SCHEMAS as DCNV4_SCHEMAS
from dcnv4_mm.ops.flash_deform_attn.registration import SCHEMAS as ATTENTION_SCHEMAS

INSTRUCTION_SETS = ("default", "avx2", "avx512")
CPU = tuple(f"cpu_{name}" for name in INSTRUCTION_SETS)
DEVICES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# The device, and whether the backward is deterministic. No real device is as small as "tiny".
HOST_RUNS = {
    "default_on_host": ("sm_90", False),
    "deterministic_on_host": ("sm_90", True),
    "tiny_on_host": ("tiny", False),
}
PTX_RUNS = {
    "ptx_75": ("sm_75", False),
    "ptx_90": ("sm_90", False),
    "ptx_75_deterministic": ("sm_75", True),
    "ptx_90_deterministic": ("sm_90", True),
    "ptx_tiny": ("tiny", False),
}
HOST = tuple(HOST_RUNS)
PTX = tuple(PTX_RUNS)
CUDA = ("cuda_default", "cuda_deterministic")
BACKENDS = (*CPU, *HOST, *PTX, *CUDA)

# Operators on CPU tensors that run CUDA code.
libraries = [torch.library.Library(f"dcnv4_mm_{kind}", "DEF") for kind in ("host", "ptx")]
for _schema in (*DCNV4_SCHEMAS, *ATTENTION_SCHEMAS, *BEV_SCHEMAS):
    for _library in libraries:
        _library.define(_schema)

_HOST_CUDA = ROOT / "tests/ops/host_cuda"
_FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
_FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTEST_NAMESPACE=dcnv4_mm_host"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build_host(operator, *flags):
    """Path of the CUDA code of an operator, compiled for the host; kept while nothing changes."""
    csrc = ROOT / "csrc"
    compiler = os.environ.get("CXX", "g++")
    folder = Path(torch.__file__).parent
    folders = [_HOST_CUDA, FAKE_DEVICE, csrc]
    command = [compiler, *_FLAGS, *flags, *(f"-I{path}" for path in folders)]
    command += [f"-isystem{folder / 'include'}", f"-L{folder / 'lib'}"]
    sources = sorted(csrc.glob(f"{operator}/*.cu"))
    headers = [path for suffix in (".h", ".cuh") for path in csrc.rglob(f"*{suffix}")]
    content = hashlib.sha256("\n".join([*command, torch.__version__]).encode())
    headers += [*_HOST_CUDA.rglob("*.*"), *FAKE_DEVICE.rglob("*.*")]
    for path in sorted({*headers, *sources, *csrc.glob(f"{operator}/bindings_cuda.cpp")}):
        content.update(str(path).encode() + path.read_bytes())
    target = ROOT / "build/host_cuda" / f"{operator}-{content.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        own = target.with_suffix(f".{os.getpid()}.so")
        lines = ['#include "host_cuda.h"']
        for storage, path in itertools.product(STORAGE_TYPES, sources):
            lines += [f"#define DCNV4_MM_STORAGE {storage}", f'#include "{path}"']
            lines += ["#undef DCNV4_MM_STORAGE"]
        lines += [f'#include "{csrc / operator / "bindings_cuda.cpp"}"']
        libtorch = ["-x", "none", "-Wl,--no-as-needed", "-ltorch_cpu"]
        arguments = [*command, "-x", "c++", "-", *libtorch, "-o", str(own)]
        subprocess.run(arguments, input="\n".join(lines), text=True, check=True)
        own.replace(target)
    return target


class Launch(NamedTuple):
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int


class HostCuda:
    """The CUDA code of an operator on the host."""

    def __init__(self, path):
        torch.ops.load_library(path)
        self.library = ctypes.CDLL(str(path))
        self.library.host_cuda_launches.restype = ctypes.c_char_p
        self.seeds = random.Random(0)

    def use(self, device, dry=False):
        seed = ctypes.c_uint32(self.seeds.getrandbits(32))
        assert self.library.host_cuda_use(device.encode(), seed, ctypes.c_bool(dry))

    def launches(self):
        """Those since the last call."""
        # A kernel's name, with its template's arguments, and the sizes of the launch.
        lines = re.finditer(
            r"(\w+_kernel).* (\d+) (\d+) (\d+)\n", self.library.host_cuda_launches().decode()
        )
        return [Launch(line[1], *map(int, line.groups()[1:])) for line in lines]

    @contextmanager
    def dry(self, device):
        """Here the operators launch kernels that do nothing."""
        self.launches()
        self.use(device, dry=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            self.use(device)
            torch.utils.deterministic.fill_uninitialized_memory = True


@cache
def host_cuda(operator, *flags):
    return HostCuda(build_host(operator, *flags))


@cache
def _cpu_library():
    paths = [p for p in torch.ops.loaded_libraries if Path(p).name == "libdcnv4_mm_cpu.so"]
    library = ctypes.CDLL(paths[0])
    library.dcnv4_mm_use_cpu_isa.argtypes = [ctypes.c_char_p]
    library.dcnv4_mm_use_cpu_isa.restype = ctypes.c_bool
    return library


class Backend:
    """Runs problems in one of the ``BACKENDS``."""

    def __init__(self, name, operator, *flags):
        self.name = name
        self.kind, _, self.detail = name.partition("_")
        self.device = "cuda" if self.kind == "cuda" else "cpu"
        self.deterministic = self.detail == "deterministic"
        self.operators = torch.ops.dcnv4_mm
        self.host = None
        runs = {**HOST_RUNS, **PTX_RUNS}
        if name in runs:
            self.kind = "host" if name in HOST_RUNS else "ptx"
            self.host = (host_cuda if name in HOST_RUNS else ptx_of)(operator, *flags)
            self.host_device, self.deterministic = runs[name]
            self.operators = getattr(torch.ops, f"dcnv4_mm_{self.kind}")

    def forward(self, problem):
        if self.host:
            self.host.use(self.host_device)
        return getattr(self.operators, f"{problem.name}_forward")(*problem.inputs())

    def backward(self, problem, *needs):
        """The gradients; ``needs`` says which ones, value's and the others', by default all."""
        if self.host:
            self.host.use(self.host_device)
        backward = getattr(self.operators, f"{problem.name}_backward")
        flags = self.deterministic, *(needs or (True, True))
        return backward(problem.grad_output, *problem.inputs(), *flags)

    def run(self, problem):
        """The output, then the gradients, on the CPU."""
        problem = problem.on(self.device)
        results = self.forward(problem), *self.backward(problem)
        return tuple(result.cpu() for result in results)

    @property
    def repeats_its_bits(self):
        """Whether the gradient of value is the same bit for bit each time."""
        return self.kind == "cpu" or self.deterministic


@contextmanager
def open_backend(name, operator):
    """A backend; its instruction set is used as long as it is open."""
    backend = Backend(name, operator)
    if backend.kind != "cpu":
        yield backend
        return
    before = torch.ops.dcnv4_mm.cpu_isa()
    if not _cpu_library().dcnv4_mm_use_cpu_isa(backend.detail.encode()):
        pytest.skip(f"this machine has no {backend.detail}")
    yield backend
    _cpu_library().dcnv4_mm_use_cpu_isa(before.encode())


def _marks(*values):
    marks = {"gpu": CUDA, "ptx": PTX}
    return [
        getattr(pytest.mark, mark)
        for mark, names in marks.items()
        if any(isinstance(value, str) and value in names for value in values)
    ]


def parameter(name):
    return pytest.param(name, marks=_marks(name), id=name)


def over(*names):
    """Runs a test in these backends, not in all."""
    return pytest.mark.parametrize("backend", [parameter(n) for n in names], indirect=True)


def _label(value):
    if isinstance(value, tuple) and all(isinstance(part, torch.dtype) for part in value):
        return "-".join(map(_label, value))
    return getattr(value, "__name__", str(value)).replace("torch.", "").replace(" ", "")


def pairwise(**axes):
    """Parametrizes a test so that any two values of two axes meet, not all values of all axes."""
    names = list(axes)
    pairs = list(itertools.combinations(range(len(names)), 2))
    values = list(axes.values())
    missing = {
        (a, i, b, j) for a, b in pairs for i in range(len(values[a])) for j in range(len(values[b]))
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        row = {a: i, b: j}

        def met(row):
            chosen = sorted(row)
            return [(x, row[x], y, row[y]) for x, y in itertools.combinations(chosen, 2)]

        for axis in range(len(names)):
            if axis not in row:
                # The value with most new pairs; of several, another one in each row.
                turned = [(k + len(rows)) % len(values[axis]) for k in range(len(values[axis]))]
                row[axis] = max(turned, key=lambda k: len(missing & {*met(row | {axis: k})}))
        missing -= {*met(row)}
        rows.append([values[axis][row[axis]] for axis in range(len(names))])
    parameters = []
    for row in rows:
        parameters.append(pytest.param(*row, marks=_marks(*row), id="-".join(map(_label, row))))
    return pytest.mark.parametrize(
        ",".join(names), parameters, indirect=["backend"] if "backend" in names else False
    )
