"""What can be known of the attention kernels without a GPU: they compile for one architecture."""

import re
import runpy
import subprocess
from collections import Counter

import pytest
import setuptools
from helpers import ROOT

pytestmark = pytest.mark.slow

# Instances of the kernels in one direction; each costs compile time for every architecture.
MOST_INSTANCES = 60
# Two blocks of 256 threads fit a multiprocessor.
MOST_REGISTERS = 128


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What the compiler said, and the folder with the kernels' PTX."""
    folder = tmp_path_factory.mktemp("attention_cuda")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(setuptools, "setup", lambda **_: None)
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("DCNV4_MM_CUDA_ARCHS", "90")
        functions = runpy.run_path("setup.py")
        if functions["find_nvcc"]() is None:
            pytest.skip("needs nvcc")
        monkeypatch.setenv("NVCC_APPEND_FLAGS", f"-Xptxas=-v --keep --keep-dir={folder}")
        sources = {
            source: flags
            for source, flags in functions["cuda_sources"]().items()
            if source.startswith("csrc/flash_deform_attn/")
        }
        said = folder / "said"
        with said.open("w") as file:
            run = subprocess.run
            # Compilers write to the file; those that run at once must not mix their lines.
            monkeypatch.setattr(
                subprocess, "run", lambda *args, **kwargs: run(*args, **kwargs, stderr=file)
            )
            command = [functions["find_nvcc"](), *functions["NVCC_FLAGS"]]
            functions["compile_objects"](command, sources, folder)
    return said.read_text(), folder


def kernels(built, direction):
    """Name -> PTX of the kernels of ``fwd`` or ``bwd``."""
    found = {}
    for path in built[1].glob(f"kernels_{direction}_*.ptx"):
        for body in path.read_text().split(".entry ")[1:]:
            found[body.split("(")[0].strip()] = body
    return found


def test_no_kernel_spills(built):
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", built[0])
    assert frames
    assert set(frames) == {("0", "0")}


def test_registers(built):
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", built[0])]
    assert len(registers) == sum(len(kernels(built, direction)) for direction in ("fwd", "bwd"))
    assert max(registers) <= MOST_REGISTERS


@pytest.mark.parametrize(("direction", "kinds"), [("fwd", 1), ("bwd", 3)])
def test_number_of_instances(built, direction, kinds):
    kind = re.compile(r"forward_kernel|points_kernel|value_\w+?_kernel")
    counts = Counter(kind.search(name)[0] for name in kernels(built, direction))
    assert len(counts) == kinds
    assert counts.total() <= MOST_INSTANCES


def wide(name):
    """Whether a kernel loads vectors of 16 bytes: 4 float32 or 8 of 16 bits."""
    return re.search(r"kernelI(fLi4E|\w+?Li8E)", name)


def test_wide_loads(built):
    """The four pixels of a point are loaded in 16 bytes each, and the output is stored so."""
    bodies = {name: body for name, body in kernels(built, "fwd").items() if wide(name)}
    # float32, float16 and bfloat16.
    assert len(bodies) == 3
    for name, body in bodies.items():
        loads = len(re.findall(r"ld\.global\.nc\.v4\.\w+", body))
        assert loads >= 4, name
        assert loads % 4 == 0, name
        assert len(re.findall(r"st\.global\.v4\.\w+", body)) == 1, name


def test_wide_atomic_additions(built):
    atomic = {name: body for name, body in kernels(built, "bwd").items() if "atomic" in name}
    bodies = [body for name, body in atomic.items() if wide(name)]
    assert len(bodies) == 3
    assert all("red.global.add.v4.f32" in body for body in bodies)


def test_only_one_kernel_adds_atomically(built):
    """The others are deterministic."""
    adding = [
        name
        for direction in ("fwd", "bwd")
        for name, body in kernels(built, direction).items()
        if re.search(r"\b(red|atom)\.(global|shared)", body)
    ]
    assert adding
    assert all("value_atomic_kernel" in name for name in adding)
