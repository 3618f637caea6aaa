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
from flash_deform_attn_problems import (
    DTYPES,
    IDS,
    check_against_reference,
    make_problem,
    random_problem,
    run_kernels,
)
from helpers import ROOT

from dcnv4_mm.ops.functional import backend_info

INSTRUCTION_SETS = ("default", "avx2", "avx512")


def test_defect_13_kernels_are_built_and_loaded():
    """The original compiles with old versions of torch only."""
    for name in ("flash_deform_attn", "ms_deform_attn"):
        serving = backend_info()[name]["cpu"]
        assert serving == f"compiled for {torch.ops.dcnv4_mm.cpu_isa()}"


@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 250, 50)], ids=str
)
def test_random_problems(seeds):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed))
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 100, 128, 200, 256])
def test_head_widths(width, dtypes, packed):
    check_against_reference(make_problem(width=width, dtypes=dtypes, packed=packed))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize(("levels", "points"), [(1, 1), (1, 33), (5, 1), (3, 7), (9, 23)])
def test_any_number_of_levels_and_points(levels, points, dtypes, packed):
    # The last has more points than a block holds.
    shapes = [(level + 1, 2 * level + 1) for level in range(levels)]
    check_against_reference(
        make_problem(shapes=shapes, points=points, dtypes=dtypes, packed=packed)
    )


def test_positions_are_rounded_as_in_the_reference():
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add,
    # and some points are on the other side. 0.7 * 5 is 3.5, but less if it is not rounded.
    problem = make_problem(shapes=[(5, 5)], dtypes=DTYPES[1])
    problem.locations[:] = 0.7
    check_against_reference(problem)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("points", [1, 3, 4, 9])
def test_softmax_of_any_logits(points, dtypes, scale):
    problem = make_problem(packed=True, points=points)
    problem = problem._replace(weights=problem.weights * scale).to(*dtypes)
    check_against_reference(problem)


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_infinite_logits(dtypes):
    problem = make_problem(packed=True, dtypes=dtypes)
    problem.weights[:, :, :, 0, 1] = -math.inf
    check_against_reference(problem)
    # No share at all, as in torch.softmax.
    problem.weights[0, 0, 0] = -math.inf
    problem.weights[0, 1, 0, 1, 2] = math.inf
    problem.weights[0, 2, 0, 1, 2] = math.nan
    output, _, grad_points = run_kernels(problem)
    for query in (0, 1, 2):
        assert output[0, query, :16].isnan().all()
        assert grad_points[0, query, 0, 16:].isnan().all()
    assert not output[0, :, 16:].isnan().any()
    assert not output[0, 3:].isnan().any()


def in_slice(tensor):
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


def in_more_rows(tensor):
    return torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]]


def heads_first(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def last_axis_first(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def every_second_image(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "layout", [in_slice, in_more_rows, heads_first, last_axis_first, every_second_image]
)
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_any_strides(layout, dtypes, packed):
    problem = make_problem(dtypes=dtypes, packed=packed)
    inputs = problem.inputs()
    strided = [layout(x) if isinstance(x, torch.Tensor) else x for x in inputs]
    operators = torch.ops.dcnv4_mm
    expected = run_kernels(problem)
    assert torch.equal(getattr(operators, f"{problem.name}_forward")(*strided), expected[0])
    gradients = getattr(operators, f"{problem.name}_backward")(
        layout(problem.grad_output), *strided, False, True, True
    )
    assert all(map(torch.equal, gradients, expected[1:]))


def test_expanded_tensors():
    problem = make_problem()
    check_against_reference(
        problem._replace(
            grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
            value=problem.value[:1, :1].expand(problem.value.shape),
            locations=problem.locations[:, :1].expand(problem.locations.shape),
            weights=problem.weights[:, :, :1].expand(problem.weights.shape),
        )
    )


def test_pitches_beyond_32_bits():
    # Images that are more than 2^31 elements apart; only the pages that are touched exist.
    problem = make_problem(dtypes=DTYPES[2])
    strides = problem.value.stride()
    pitch = 2**31 + strides[0]
    pages = mmap.mmap(-1, 2 * (pitch + 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (pitch, *strides[1:]))
    far = problem._replace(value=value.copy_(problem.value))
    for actual, expected in zip(run_kernels(far), run_kernels(problem), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
@pytest.mark.parametrize(("batch", "heads", "width"), [(1, 1, 32), (1, 2, 16), (3, 5, 8)])
def test_same_bits_for_any_number_of_threads(batch, heads, width, dtypes, packed):
    # Large enough for several bands of pixels, which end inside of levels.
    shapes = [(30, 41), (15, 21), (8, 11)]
    problem = make_problem(
        batch=batch,
        heads=heads,
        width=width,
        shapes=shapes,
        queries=1500,
        dtypes=dtypes,
        packed=packed,
    )
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


def test_sums_of_16_bits_in_several_bands():
    # The float32 sums of one head, 90 * 120 * 128 * 4 bytes, are more than one band takes.
    problem = make_problem(batch=1, heads=1, width=128, shapes=[(90, 120), (3, 4)], queries=500)
    check_against_reference(problem.to(*DTYPES[5]))


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("location", [math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30])
def test_points_outside_count_for_nothing(location, dtypes):
    problem = make_problem(dtypes=dtypes)
    # The second point's x, the third's y, with weights that are no numbers.
    problem.locations[..., 1, 0] = location
    problem.locations[..., 2, 1] = location
    problem.weights[..., 1] = math.nan
    problem.weights[..., 2] = math.inf
    results = run_kernels(problem)

    without = problem._replace(weights=problem.weights.clone())
    without.weights[..., 1:3] = 0.0
    for actual, expected in zip(results, run_kernels(without), strict=True):
        assert torch.equal(actual, expected)
    assert not results[2][..., 1:3, :].any()
    assert not results[3][..., 1:3].any()


def test_nan_weight_of_a_point_inside_propagates():
    problem = make_problem(reach=-0.2, dtypes=DTYPES[1])
    problem.weights[0, 0, 0, 0, 0] = math.nan
    output, grad_value, *_ = run_kernels(problem)
    assert output[0, 0, :16].isnan().all()
    assert not output[0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


def test_infinite_pixel_at_the_border():
    # Half a pixel outside, one corner is 0 and one is infinite: their sum is not NaN.
    problem = make_problem(shapes=[(4, 4)], points=4)
    problem.value[:] = math.inf
    problem.weights[:] = 1.0
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    problem.locations[:] = corners
    output = torch.ops.dcnv4_mm.ms_deform_attn_forward(*problem.inputs())
    assert output.isinf().all()


def memory_kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_memory(dtypes):
    """No more than inputs and outputs, and one head's float32 sums per thread for 16 bits."""
    problem = make_problem(
        batch=1, shapes=[(100, 100), (50, 50)], queries=12500, heads=8, width=32, dtypes=dtypes
    )
    run_kernels(make_problem(dtypes=dtypes))
    sums = torch.get_num_threads() * 12500 * 32 * 4 if dtypes[0].itemsize == 2 else 0
    operators = torch.ops.dcnv4_mm
    for operator, arguments, extra in (
        (operators.ms_deform_attn_forward, problem.inputs(), 0),
        (
            operators.ms_deform_attn_backward,
            (problem.grad_output, *problem.inputs(), False, True, True),
            sums,
        ),
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
        assert used > 0.9 * written  # otherwise the measurement is wrong
        assert used <= 1.1 * written + extra
        del outputs


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(instruction_set):
    """Runs this file's other tests once more, in a process that uses the given kernels."""
    environment = {**os.environ, "DCNV4_MM_CPU_ISA": instruction_set}
    options = dict(env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    ask = "import dcnv4_mm.ops.functional, torch; print(torch.ops.dcnv4_mm.cpu_isa())"
    asked = subprocess.run([sys.executable, "-c", ask], **options)
    if asked.returncode:
        assert "this machine does not support it" in asked.stderr
        return
    assert asked.stdout.strip() == instruction_set
    arguments = ["-q", "-x", "-k", "not instruction_set", "-p", "no:cacheprovider"]
    tests = subprocess.run([sys.executable, "-m", "pytest", __file__, *arguments], **options)
    assert tests.returncode == 0, tests.stdout
