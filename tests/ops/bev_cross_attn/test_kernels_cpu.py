"""The compiled CPU kernels against the float64 reference, for every instruction set."""

import ctypes
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bev_cross_attn_problems import (
    DTYPES,
    IDS,
    check_against_reference,
    make_problem,
    random_problem,
    run_kernels,
    run_reference,
)
from helpers import ROOT

from dcnv4_mm.ops.functional import backend_info

INSTRUCTION_SETS = ("default", "avx2", "avx512")
OPERATORS = torch.ops.dcnv4_mm


def test_kernels_are_built_and_loaded():
    serving = backend_info()["bev_cross_attn"]["cpu"]
    assert serving == f"compiled for {OPERATORS.cpu_isa()}"


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 30, 10)], ids=str)
def test_random_problems(seeds):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed))
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 3, 17, 32, 100])
def test_head_widths(width, dtypes):
    check_against_reference(make_problem(width=width, cameras=2, points=2, dtypes=dtypes))


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize(
    ("cameras", "levels", "points", "pillar"),
    [(1, 1, 1, 1), (2, 1, 17, 3), (4, 3, 3, 4), (9, 2, 2, 1)],
)
def test_any_number_of_cameras_levels_points_and_pillars(cameras, levels, points, pillar, dtypes):
    shapes = [(level + 1, 2 * level + 1) for level in range(levels)]
    check_against_reference(
        make_problem(
            cameras=cameras,
            shapes=shapes,
            points=points,
            pillar=pillar,
            queries=7,
            width=5,
            dtypes=dtypes,
        )
    )


def test_positions_are_rounded_as_in_the_reference():
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add, and
    # some points are on the other side. 0.7 * 5 is 3.5, but less if it is not rounded.
    problem = make_problem(shapes=[(5, 5)], dtypes=DTYPES[1])
    problem.references[:] = 0.7
    problem.points()[0][:] = 0.0
    check_against_reference(problem)


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_what_no_camera_sees_is_not_read(dtypes, density):
    problem = make_problem(cameras=4, queries=20, points=2, density=density, dtypes=dtypes)
    expected = run_kernels(problem)
    problem.references[~problem.hits] = math.nan
    unseen = ~problem.hits.any(1)
    assert unseen.any() == (density < 1)
    problem.offsets_logits[unseen] = math.nan
    results = run_kernels(problem)
    assert all(map(torch.equal, results, expected))
    assert not results[0][unseen].any()
    assert not results[2][unseen].any()


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_logits_that_are_not_finite(dtypes):
    problem = make_problem(density=1.0, reach=-0.3, dtypes=dtypes)
    logits = problem.points()[1]
    logits[:, :, 0, 0, 1] = -math.inf
    check_against_reference(problem)
    # No share at all, as in torch.softmax.
    logits[0, 0, 0] = -math.inf
    logits[0, 1, 0, 1, 2] = math.nan
    expected = run_reference(problem.to(*DTYPES[0]))
    for actual, wanted in zip(run_kernels(problem), expected, strict=True):
        assert torch.equal(actual.isnan(), wanted.isnan())
    assert expected[0][0, :2, :16].isnan().all()


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("position", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("point", [0, 1])
def test_points_outside_count_for_nothing(point, position, dtypes):
    problem = make_problem(pillar=2, dtypes=dtypes)
    problem.references[..., point, 0] = position
    output, grad_value, grad_points = run_kernels(problem)
    assert output.isfinite().all()
    assert grad_value.isfinite().all()
    assert grad_points.isfinite().all()
    # Every second point goes out from there: no gradient by its offset.
    grad_offsets = problem._replace(offsets_logits=grad_points).points()[0]
    assert not grad_offsets[..., point::2, :].any()
    assert grad_offsets[..., 1 - point :: 2, :].any()


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_queries_may_be_in_any_order(dtypes):
    # The kernels take them by where they look; a bit that changes would show through.
    problem = make_problem(cameras=3, queries=300, density=0.4, dtypes=dtypes)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = problem._replace(
        offsets_logits=problem.offsets_logits[:, order],
        references=problem.references[:, :, order],
        hits=problem.hits[:, :, order],
        grad_output=problem.grad_output[:, order],
    )
    output, _, grad_points = run_kernels(problem)
    shuffled_output, _, shuffled_grad_points = run_kernels(shuffled)
    assert torch.equal(shuffled_output, output[:, order])
    assert torch.equal(shuffled_grad_points, grad_points[:, order])


def in_slice(tensor):
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


def in_more_rows(tensor):
    return torch.cat([tensor, tensor], dim=2)[:, :, : tensor.shape[2]]


def last_axis_first(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def every_second_sample(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


@pytest.mark.parametrize("layout", [in_slice, in_more_rows, last_axis_first, every_second_sample])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[5]], ids=str)
def test_any_strides(layout, dtypes):
    problem = make_problem(dtypes=dtypes)
    strided = [layout(x) if isinstance(x, torch.Tensor) else x for x in problem.inputs()]
    expected = run_kernels(problem)
    assert torch.equal(OPERATORS.bev_cross_attn_forward(*strided), expected[0])
    # A gradient has three axes.
    grad_output = problem.grad_output.transpose(0, 1).contiguous().transpose(0, 1)
    gradients = OPERATORS.bev_cross_attn_backward(grad_output, *strided, False, True, True)
    assert all(map(torch.equal, gradients, expected[1:]))


def test_expanded_tensors():
    problem = make_problem()
    check_against_reference(
        problem._replace(
            grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
            value=problem.value[:1, :1, :1].expand(problem.value.shape),
            offsets_logits=problem.offsets_logits[:, :1].expand(problem.offsets_logits.shape),
            references=problem.references[:, :1].expand(problem.references.shape),
            hits=problem.hits[:1].expand(problem.hits.shape),
        )
    )


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
@pytest.mark.parametrize(("batch", "cameras", "heads"), [(1, 1, 1), (2, 3, 2)])
def test_same_bits_for_any_number_of_threads(batch, cameras, heads, dtypes):
    # Large enough for several bands of pixels, which end inside of levels.
    problem = make_problem(
        batch=batch,
        cameras=cameras,
        heads=heads,
        shapes=[(30, 41), (15, 21), (8, 11)],
        queries=1000,
        dtypes=dtypes,
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
    check_against_reference(
        make_problem(
            batch=1,
            cameras=2,
            heads=1,
            width=128,
            shapes=[(90, 120), (3, 4)],
            points=2,
            queries=300,
            dtypes=DTYPES[5],
        )
    )


def memory_kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_memory(dtypes):
    """No more than inputs and outputs, and one head's float32 sums per thread for 16 bits."""
    problem = make_problem(
        batch=1,
        cameras=4,
        shapes=[(50, 50), (25, 25)],
        queries=4000,
        heads=8,
        width=32,
        dtypes=dtypes,
    )
    run_kernels(make_problem(dtypes=dtypes))
    sums = torch.get_num_threads() * 3125 * 32 * 4 if dtypes[0].itemsize == 2 else 0
    for operator, arguments, extra in (
        (OPERATORS.bev_cross_attn_forward, problem.inputs(), 0),
        (
            OPERATORS.bev_cross_attn_backward,
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
    """Runs some of this file's tests once more, in a process that uses the given kernels."""
    environment = {**os.environ, "DCNV4_MM_CPU_ISA": instruction_set}
    options = dict(env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    ask = "import dcnv4_mm.ops.functional, torch; print(torch.ops.dcnv4_mm.cpu_isa())"
    asked = subprocess.run([sys.executable, "-c", ask], **options)
    if asked.returncode:
        assert "this machine does not support it" in asked.stderr
        return
    assert asked.stdout.strip() == instruction_set
    arguments = ["-q", "-x", "-k", "random or finite", "-p", "no:cacheprovider"]
    tests = subprocess.run([sys.executable, "-m", "pytest", __file__, *arguments], **options)
    assert tests.returncode == 0, tests.stdout
