"""What can be known of the CUDA library without a GPU: it is built for one architecture.

Defect 12 of the original operator (docs/migration.md): its build needs a GPU.
"""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from helpers import ROOT

pytestmark = pytest.mark.slow

# Instances of the kernels in one direction; each costs compile time for every architecture.
MOST_INSTANCES = 60
# 512 threads of the widest kernels fit a multiprocessor.
MOST_REGISTERS = 128


@pytest.fixture
def kernels(cuda_build):
    """A function of ``fwd`` or ``bwd``: name -> PTX of the kernels."""
    return partial(cuda_build.kernels, "dcnv4")


def test_no_kernel_spills(cuda_build):
    """Those of the other operators neither."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", cuda_build.log)
    assert frames
    assert set(frames) == {("0", "0")}


def test_registers(cuda_build, kernels):
    assert max(cuda_build.registers([*kernels("fwd"), *kernels("bwd")])) <= MOST_REGISTERS


@pytest.mark.parametrize(("direction", "kinds"), [("fwd", 1), ("bwd", 5)])
def test_number_of_instances(kernels, direction, kinds):
    names = kernels(direction)
    kind = re.compile(r"forward_kernel|backward_\w+?_kernel")
    counts = Counter(kind.search(name)[0] for name in names)
    assert len(counts) == kinds
    assert counts.total() <= MOST_INSTANCES


def test_wide_loads(kernels):
    """The 3x3 kernels load four pixels of a point in vectors of 16 bytes, for 9 or 8 points."""
    special = re.compile(r"forward_kernelI(\w*?)Li(4|8|16)ELi(9|8)ELi[0-3]E")
    found = Counter()
    for name, body in kernels("fwd").items():
        if not (match := special.search(name)):
            continue
        points = int(match[3])
        vectors = int(match[2]) // (4 if match[1] == "f" else 8)
        loads = len(re.findall(r"ld\.global\.nc\.v4\.\w+", body))
        assert loads == 4 * points * vectors, name
        assert len(re.findall(r"st\.global\.v4\.\w+", body)) == vectors, name
        found[points, vectors] += 1
    # One vector: float32, bfloat16, and float16 in two ways. Two vectors: these, and those of 16
    # bits also for groups of one thread.
    assert found == {(9, 1): 4, (8, 1): 4, (9, 2): 7, (8, 2): 7}


def test_wide_atomic_additions(kernels):
    bodies = [body for name, body in kernels("bwd").items() if "atomic" in name]
    assert any("red.global.add.v4.f32" in body for body in bodies)


def test_instruction_counts(cuda_build):
    """Of all operators, against the committed table."""
    counts = runpy.run_path(str(ROOT / "dev/sass_counts.py"))
    if not (cuobjdump := counts["find_tool"]("cuobjdump")):
        pytest.skip("needs cuobjdump")
    release, table = counts["read_table"]()
    if counts["nvcc_release"]() != release:
        pytest.skip(f"the table is of nvcc {release}")
    found = {}
    for cubin in cuda_build.ptx.rglob("*.cubin"):
        found |= counts["count_cubin"](cubin, cuobjdump)
    assert found
    assert counts["regressions"](found, table) == []


def test_needs_only_the_stable_interface_of_torch(cuda_build):
    library = cuda_build.library
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    system = r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+"
    weak = "_ITM_deregisterTMCloneTable|_ITM_registerTMCloneTable|__gmon_start__"
    allowed = re.compile(rf"aoti_torch_\w+|torch_\w+|{system}|{weak}")
    symbols = [line.split()[-1] for line in undefined.splitlines()]
    assert [symbol for symbol in symbols if not allowed.fullmatch(symbol)] == []
    assert "aoti_torch_get_current_cuda_stream" in symbols
    dynamic = subprocess.check_output(["readelf", "-d", library], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    # The driver and the runtime are found at run time or linked in: no CUDA version in a name.
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= needed
    assert not any("cudart" in name for name in needed)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


LOADS = """
import sys, torch
from torch._subclasses import FakeTensorMode
from dcnv4_mm.ops.functional import backend_info, dcnv4
torch.ops.load_library(sys.argv[1])
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
for operator in backend_info():
    for direction in ("forward", "backward"):
        assert has_kernel(f"dcnv4_mm::{operator}_{direction}", "CUDA"), operator
if torch.version.cuda:
    with FakeTensorMode(), torch.device("cuda"):
        output = dcnv4(torch.rand(2, 6, 6, 32), torch.rand(2, 6, 6, 112), groups=4)
    assert output.is_cuda and output.shape == (2, 6, 6, 32)
"""


def test_loads_and_registers_its_kernels(cuda_build, tmp_path):
    # Instead of the installed library.
    environment = {**os.environ, "DCNV4_MM_DISABLE_EXT": "1"}
    if torch.version.cuda is None:
        # What a CPU-only torch lacks; nothing calls it.
        stub = tmp_path / "libtorch_cuda.so"
        source = "int aoti_torch_get_current_cuda_stream() { return 1; }"
        compiler = [os.environ.get("CXX", "g++"), "-x", "c", "-", "-shared", "-fPIC"]
        subprocess.run([*compiler, "-o", stub], input=source, text=True, check=True)
        environment["LD_LIBRARY_PATH"] = str(tmp_path)
    command = [sys.executable, "-c", LOADS, cuda_build.library]
    subprocess.run(command, env=environment, check=True)
