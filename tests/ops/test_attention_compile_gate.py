"""What can be known of the attention kernels without a GPU: they compile for one architecture."""

import re
from collections import Counter
from functools import partial

import pytest

pytestmark = pytest.mark.slow

# Instances of the kernels in one direction; each costs compile time for every architecture.
MOST_INSTANCES = 60
# Two blocks of 256 threads fit a multiprocessor.
MOST_REGISTERS = 128


@pytest.fixture(params=["flash_deform_attn", "bev_cross_attn"])
def kernels(request, cuda_build):
    """A function of ``fwd`` or ``bwd``: name -> PTX of an operator's kernels."""
    return partial(cuda_build.kernels, request.param)


def test_registers(cuda_build, kernels):
    assert max(cuda_build.registers([*kernels("fwd"), *kernels("bwd")])) <= MOST_REGISTERS


@pytest.mark.parametrize(("direction", "kinds"), [("fwd", 1), ("bwd", 5)])
def test_number_of_instances(kernels, direction, kinds):
    kind = re.compile(r"forward_kernel|backward_\w+?_kernel")
    counts = Counter(kind.search(name)[0] for name in kernels(direction))
    assert len(counts) == kinds
    assert counts.total() <= MOST_INSTANCES


def test_wide_loads(kernels):
    """The pixels of a point are loaded in vectors of 16 bytes, and the output is stored so."""
    wide = re.compile(r"forward_kernelI(?:(f)Li(4|8)E|[^fd]\w*?Li(8|16)E)")
    found = Counter()
    for name, body in kernels("fwd").items():
        if not (match := wide.search(name)):
            continue
        vectors = int(match[2]) // 4 if match[1] else int(match[3]) // 8
        loads = len(re.findall(r"ld\.global\.nc\.v4\.\w+", body))
        assert loads >= 4 * vectors, name
        assert loads % (4 * vectors) == 0, name
        assert len(re.findall(r"st\.global\.v4\.\w+", body)) == vectors, name
        found[vectors] += 1
    # float32, float16 and bfloat16.
    assert found == {1: 3, 2: 3}


def test_wide_atomic_additions(kernels):
    wide = re.compile(r"value_atomic_kernelI\w+?Li4ELi[12]E")
    bodies = [body for name, body in kernels("bwd").items() if wide.search(name)]
    # One or two vectors of four float32 numbers per thread, for three storage types.
    assert len(bodies) == 6
    assert all("red.global.add.v4.f32" in body for body in bodies)


def test_only_one_kernel_adds_floats_atomically(kernels):
    """The others are deterministic: integers may be added in any order."""
    adding = [
        name
        for direction in ("fwd", "bwd")
        for name, body in kernels(direction).items()
        if re.search(r"\b(red|atom)\.[\w.]*\.b?f\d", body)
    ]
    assert adding
    assert all("value_atomic_kernel" in name for name in adding)
