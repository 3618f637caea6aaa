"""The compiled CPU kernels against the float64 reference, for every instruction set."""

import ctypes
import math
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dcnv4_problems import (
    DTYPES,
    LAYOUTS,
    check_against_reference,
    make_problem,
    random_problem,
)
from helpers import ROOT

from dcnv4_mm.ops.functional import backend_info

INSTRUCTION_SETS = ("default", "avx2", "avx512")


def run_kernels(problem):
    """Output, gradient of value, gradient of offset_mask."""
    output = torch.ops.dcnv4_mm.dcnv4_forward(*problem[1:])
    return output, *torch.ops.dcnv4_mm.dcnv4_backward(*problem, False, True, True)


def test_kernels_are_loaded():
    serving = backend_info()["dcnv4"]["cpu"]
    assert serving == f"compiled for {torch.ops.dcnv4_mm.cpu_isa()}"
    assert torch.ops.dcnv4_mm.cpu_isa() in INSTRUCTION_SETS
    wish = os.environ.get("DCNV4_MM_CPU_ISA")
    assert wish in (None, torch.ops.dcnv4_mm.cpu_isa())


@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 250, 50)], ids=str
)
def test_random_problems(seeds):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed), run_kernels)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 100, 128, 200, 256])
def test_group_widths(width, dtype):
    check_against_reference(make_problem(width=width, dtype=dtype), run_kernels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_points_than_a_block_holds(dtype):
    problem = make_problem(kernel_size=(21, 17), padding=(10, 8), dtype=dtype)
    check_against_reference(problem, run_kernels)


def test_positions_are_rounded_as_in_the_reference():
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add,
    # and some points are on the other side.
    problem = make_problem(kernel_size=(1, 1), padding=(4, 4), offset_scale=0.7, size=(12, 12))
    # -4 + 10 * 0.7 is 3, but less if the product is not rounded.
    problem.offset_mask[:, 0, 0, :2] = 10.0
    check_against_reference(problem, run_kernels)


@pytest.mark.parametrize("size", [(6, 7), (1, 7), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(layout, size, dtype):
    problem = make_problem(size=size, dtype=dtype)
    strided = problem._replace(
        grad_output=layout(problem.grad_output),
        value=layout(problem.value),
        offset_mask=layout(problem.offset_mask),
    )
    for actual, expected in zip(run_kernels(strided), run_kernels(problem), strict=True):
        assert torch.equal(actual, expected)


def test_expanded_tensors():
    problem = make_problem()
    expanded = problem._replace(
        grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
        value=problem.value[:1, :1, :1].expand(problem.value.shape),
        offset_mask=problem.offset_mask[:1].expand(problem.offset_mask.shape),
    )
    check_against_reference(expanded, run_kernels)


def test_pitches_beyond_32_bits():
    # Rows that are more than 2^31 elements apart; only the pages that are touched exist.
    problem = make_problem(batch=1, size=(2, 5), dtype=torch.float16)
    pitch = 2**31 + 5 * problem.value.shape[-1]
    pages = mmap.mmap(-1, 2 * (pitch + 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (2 * pitch, pitch, problem.value.shape[-1], 1))
    far = problem._replace(value=value.copy_(problem.value))
    for actual, expected in zip(run_kernels(far), run_kernels(problem), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "groups", "width"), [(1, 1, 32), (1, 2, 16), (1, 5, 8), (3, 4, 16)]
)
def test_same_bits_for_any_number_of_threads(batch, groups, width, dtype):
    # Large enough for several bands of rows, and for a slab of 16-bit sums to be cut.
    problem = make_problem(batch=batch, size=(60, 70), groups=groups, width=width, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            results.append(run_kernels(problem))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30])
def test_points_outside_count_for_nothing(offset, dtype):
    problem = make_problem(spare=0, dtype=dtype)
    points = 9
    rows = problem.offset_mask.unflatten(-1, (problem.groups, 3 * points))
    # The second point's x, the third's y, the fourth's mask and x; whatever the other numbers are.
    rows[..., 2] = offset
    rows[..., 5] = offset
    rows[..., 6] = offset
    rows[..., 2 * points + 3] = math.nan
    rows[..., 2 * points + 1] = math.inf
    output, grad_value, grad_offset_mask = run_kernels(problem)

    without = problem._replace(offset_mask=problem.offset_mask.clone())
    rows = without.offset_mask.unflatten(-1, (problem.groups, 3 * points))
    rows[..., 2:8] = 100.0
    rows[..., 2 * points + 1 : 2 * points + 4] = 0.0
    expected = run_kernels(without)
    assert torch.equal(output, expected[0])
    assert torch.equal(grad_value, expected[1])
    assert torch.equal(grad_offset_mask, expected[2])
    grads = grad_offset_mask.unflatten(-1, (problem.groups, 3 * points))
    assert not grads[..., 2:8].any()
    assert not grads[..., 2 * points + 1 : 2 * points + 4].any()


def test_nan_mask_of_a_point_inside_propagates():
    problem = make_problem(sigma=0.0, padding=(0, 0), dtype=torch.float32)
    problem.offset_mask[0, 0, 0, 18] = math.nan
    output, grad_value, _ = run_kernels(problem)
    assert output[0, 0, 0, :16].isnan().all()
    assert not output[0, 0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


def test_infinite_pixel_at_the_border():
    # Half a pixel outside, one corner is 0 and one is infinite: their sum is not NaN.
    problem = make_problem(groups=1, kernel_size=(1, 1), padding=(0, 0), spare=0, batch=1)
    problem.value[:] = math.inf
    problem.offset_mask[..., :2] = 0.0
    problem.offset_mask[..., 2] = 1.0
    problem.offset_mask[:, 0, :, 1] = -0.5
    problem.offset_mask[:, -1, :, 1] = 0.5
    problem.offset_mask[:, :, 0, 0] = -0.5
    problem.offset_mask[:, :, -1, 0] = 0.5
    output = torch.ops.dcnv4_mm.dcnv4_forward(*problem[1:])
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert output[(slice(None), *corner)].isinf().all()


def memory_kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype):
    problem = make_problem(batch=1, size=(160, 160), groups=4, width=32, spare=4, dtype=dtype)
    run_kernels(make_problem(dtype=dtype))
    for operator, arguments in (
        (torch.ops.dcnv4_mm.dcnv4_forward, problem[1:]),
        (torch.ops.dcnv4_mm.dcnv4_backward, (*problem, False, True, True)),
    ):
        # Large blocks come from the system and go back to it: what is in use is what is held.
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
        before = memory_kilobytes("VmRSS")
        outputs = operator(*arguments)
        used = 1024 * (memory_kilobytes("VmHWM") - before)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        written = sum(tensor.nbytes for tensor in outputs)
        read = sum(tensor.nbytes for tensor in arguments if isinstance(tensor, torch.Tensor))
        assert used > 0.9 * written  # otherwise the measurement is wrong
        assert used + read <= 1.2 * (written + read)
        del outputs


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


ASK = "import dcnv4_mm.ops.functional, torch; print(torch.ops.dcnv4_mm.cpu_isa())"


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(instruction_set):
    """Runs this file's other tests once more, in a process that uses the given kernels."""
    environment = {"DCNV4_MM_CPU_ISA": instruction_set}
    asked = run_python("-c", ASK, **environment)
    if asked.returncode:
        assert "this machine does not support it" in asked.stderr
        return
    assert asked.stdout.strip() == instruction_set
    options = ["-q", "-x", "-k", "not instruction_set", "-p", "no:cacheprovider"]
    tests = run_python("-m", "pytest", __file__, *options, **environment)
    assert tests.returncode == 0, tests.stdout


def test_instruction_set_files_include_no_library_code():
    # An inline function of a C++ library header would exist once per instruction set, and the
    # linker would keep any one of them for all.
    harmless = {"stdint.h", "cstdint", "cstddef", "immintrin.h"}
    found, pending = set(), list((ROOT / "csrc").glob("*/cpu*.cpp"))
    assert len(pending) == len(INSTRUCTION_SETS) * len({path.parent for path in pending})
    while pending:
        text = pending.pop().read_text()
        assert set(re.findall(r"#include <(.*)>", text)) <= harmless
        own = {ROOT / "csrc" / name for name in re.findall(r'#include "(.*)"', text)} - found
        found |= own
        pending.extend(own)
    assert len(found) > 4
