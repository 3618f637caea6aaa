"""What can be known of the CUDA library without a GPU: it is built for one architecture.

Hazard 12 of the original operator: its build needs a GPU.
"""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter

import pytest
import setuptools
import torch
from helpers import ROOT

pytestmark = pytest.mark.slow

# Instances of the kernels in one direction; each costs compile time for every architecture.
MOST_INSTANCES = 60
# 512 threads of the widest kernels fit a multiprocessor.
MOST_REGISTERS = 128


def setup_functions(monkeypatch):
    """The names in setup.py, without running setup()."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    return runpy.run_path("setup.py")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library, what the compiler said, and the folder with its PTX."""
    folder = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DCNV4_MM_CUDA_ARCHS", "90")
        functions = setup_functions(monkeypatch)
        if functions["find_nvcc"]() is None:
            pytest.skip("needs nvcc")
        ptx = folder / "ptx"
        ptx.mkdir()
        monkeypatch.setenv("NVCC_APPEND_FLAGS", f"-Xptxas=-v --keep --keep-dir={ptx}")
        said = folder / "said"
        library = folder / "libdcnv4_mm_cuda.so"
        with said.open("w") as file:
            run = subprocess.run
            # Compilers write to the file; those that run at once must not mix their lines.
            monkeypatch.setattr(
                subprocess, "run", lambda *args, **kwargs: run(*args, **kwargs, stderr=file)
            )
            functions["build_cuda_library"](library, folder)
    return library, said.read_text(), ptx


def test_no_kernel_spills(built):
    _, said, _ = built
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said)
    assert frames
    assert set(frames) == {("0", "0")}


def test_registers(built):
    _, said, _ = built
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    assert registers
    assert max(registers) <= MOST_REGISTERS


def kernels(built, direction):
    """Name -> PTX of the kernels of ``fwd`` or ``bwd``."""
    found = {}
    for path in built[2].glob(f"kernels_{direction}_*.ptx"):
        for body in path.read_text().split(".entry ")[1:]:
            found[body.split("(")[0].strip()] = body
    return found


@pytest.mark.parametrize(("direction", "kinds"), [("fwd", 1), ("bwd", 3)])
def test_number_of_instances(built, direction, kinds):
    names = kernels(built, direction)
    kind = re.compile(r"forward_kernel|offset_mask_kernel|value_\w+?_kernel")
    counts = Counter(kind.search(name)[0] for name in names)
    assert len(counts) == kinds
    assert counts.total() <= MOST_INSTANCES


def test_wide_loads(built):
    """The 3x3 kernels load four pixels of a point in 16 bytes each, for 9 or 8 points."""
    special = re.compile(r"forward_kernelI\w*?Li(?:8|4)ELi(9|8)ELb[01]E")
    found = Counter()
    for name, body in kernels(built, "fwd").items():
        if not (match := special.search(name)):
            continue
        points = int(match[1])
        loads = len(re.findall(r"ld\.global\.nc\.v4\.\w+", body))
        assert loads == 4 * points, name
        assert len(re.findall(r"st\.global\.v4\.\w+", body)) == 1, name
        found[points] += 1
    # float32, bfloat16, and float16 in two ways.
    assert found == {9: 4, 8: 4}


def test_wide_atomic_additions(built):
    bodies = [body for name, body in kernels(built, "bwd").items() if "atomic" in name]
    assert any("red.global.add.v4.f32" in body for body in bodies)


def test_needs_only_the_stable_interface_of_torch(built):
    library = built[0]
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


REGISTERS = """
import sys, torch
import dcnv4_mm.ops.dcnv4.registration
torch.ops.load_library(sys.argv[1])
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
print([has_kernel(f"dcnv4_mm::dcnv4_{name}", "CUDA") for name in ("forward", "backward")])
"""


def test_loads_and_registers_its_kernels(built, tmp_path):
    environment = dict(os.environ)
    if torch.version.cuda is None:
        # What a CPU-only torch lacks; nothing calls it.
        stub = tmp_path / "libtorch_cuda.so"
        source = "int aoti_torch_get_current_cuda_stream() { return 1; }"
        compiler = [os.environ.get("CXX", "g++"), "-x", "c", "-", "-shared", "-fPIC"]
        subprocess.run([*compiler, "-o", stub], input=source, text=True, check=True)
        environment["LD_LIBRARY_PATH"] = str(tmp_path)
    said = subprocess.check_output(
        [sys.executable, "-c", REGISTERS, built[0]], text=True, env=environment, cwd=ROOT
    )
    assert said.strip() == "[True, True]"
