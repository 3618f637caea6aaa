"""The bodies of the CUDA kernels, run on the host, against the float64 reference.

Numbered hazards are those of the original operator: shapes or inputs for which it gives wrong
results or fails.
"""

import math
import mmap
import os
import subprocess
import sys

import pytest
import torch
from dcnv4_host import DEVICES, TINY_DEVICE, ValueLaunch, compile_host, params_of
from dcnv4_problems import (
    DTYPES,
    GOLDEN_CASES,
    LAYOUTS,
    check_against_reference,
    check_golden,
    golden_problem,
    make_problem,
    random_problem,
    relative_error,
    run_reference,
)
from helpers import ROOT


@pytest.fixture(params=["whole", "parts", "atomic"])
def run(host, request):
    """One way to the gradient of value each: whole images, parts of images, atomic additions."""
    return {
        "whole": host.run_deterministic,
        "parts": host.on(TINY_DEVICE).run_deterministic,
        "atomic": host.run,
    }[request.param]


def test_every_way_to_the_gradient_of_value_on_host(host):
    params, _ = params_of(make_problem(size=(12, 13)))
    assert host.value_launch(params, False).mode == ValueLaunch.ATOMIC
    whole = host.value_launch(params, True)
    assert (whole.mode, whole.ownership.ranges.value) == (ValueLaunch.OWNED, 1)
    tiny = host.on(TINY_DEVICE)
    assert tiny.value_launch(params, False).mode == ValueLaunch.ATOMIC
    parts = tiny.value_launch(params, True)
    assert parts.mode == ValueLaunch.OWNED
    assert parts.ownership.ranges.value > 1


@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_recorded_results_on_host(name, dtype, run):
    case = GOLDEN_CASES[name]
    check_golden(case, run(golden_problem(case).to(dtype)))


@pytest.mark.parametrize("seeds", [range(start, start + 15) for start in range(0, 60, 15)], ids=str)
def test_random_problems_on_host(seeds, run):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed), run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("device", DEVICES)
def test_random_problems_on_every_device_on_host(host, device):
    for seed in range(100, 110):
        check_against_reference(random_problem(seed), host.on(DEVICES[device]).run_deterministic)


WIDTHS = [1, 2, 4, 6, 8, 12, 16, 48, 80, 129, 2560]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_group_widths_on_host(width, dtype, run):
    """Hazard 8: widths that are no power of two, or more than a block has threads for."""
    check_against_reference(make_problem(size=(4, 5), width=width, dtype=dtype), run)


@pytest.mark.parametrize("width", WIDTHS)
def test_atomic_additions_of_single_numbers_on_host(host, width):
    """As on devices before compute capability 9.0."""
    problem = make_problem(size=(4, 5), width=width, dtype=torch.float32)
    check_against_reference(problem, host.on(TINY_DEVICE).run)


# Stages of FlashInternImage: edge of the map, groups. Widths of groups are 16.
STAGES = {
    "T": [(56, 4), (28, 8), (14, 16), (7, 32)],
    "S": [(56, 5), (28, 10), (14, 20), (7, 40)],
    "B": [(56, 7), (28, 14), (14, 28), (7, 56)],
    "L": [(56, 10), (28, 20), (14, 40), (7, 80)],
}
OFFSET_SCALES = {"T": 1.0, "S": 1.0, "B": 0.5, "L": 2.0}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("model", STAGES)
def test_stages_in_batches_on_host(host, model, stage):
    """Hazard 1: no block may mix two images. Hazard 3: stage 4 of L has 1280 channels."""
    size, groups = STAGES[model][stage]
    problem = make_problem(
        size=(size, size), groups=groups, offset_scale=OFFSET_SCALES[model], dtype=torch.float16
    )
    check_against_reference(problem, host.run)


def test_first_stage_on_host(host):
    problem = make_problem(size=(56, 56), groups=4, dtype=torch.float32)
    check_against_reference(problem, host.run)
    check_against_reference(problem, host.run_deterministic)


@pytest.mark.parametrize("batch", [1, 3, 257])
def test_batches_on_host(batch, run):
    """Hazard 8: any batch size. The images alone give what they give together."""
    problem = make_problem(batch=batch, size=(3, 3), groups=3, width=8, dtype=torch.float32)
    check_against_reference(problem, run)


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 9), (5, 5), (2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stride_and_kernel_size_on_host(kernel_size, remove_center, dtype, run):
    """Hazards 7 and 8: the launch fits the output's size, and any kernel works."""
    problem = make_problem(
        size=(9, 11),
        kernel_size=kernel_size,
        stride=(2, 3),
        padding=(3, 4),
        dilation=(2, 1),
        remove_center=remove_center,
        dtype=dtype,
    )
    check_against_reference(problem, run)


def test_more_points_than_fit_into_shared_memory_on_host(host, run):
    problem = make_problem(
        batch=1, size=(4, 3), kernel_size=(21, 17), padding=(10, 8), dtype=torch.float32
    )
    params, _ = params_of(problem)
    assert host.on(TINY_DEVICE).tiling(params).points < 21 * 17
    check_against_reference(problem, run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_gradients_on_host(dtype, run):
    """Hazard 4."""
    check_against_reference(make_problem(size=(12, 13), groups=5, dtype=dtype), run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf, 6e4, -6e4, -1.0])
def test_points_outside_count_for_nothing_on_host(offset, dtype, run):
    """Hazard 5: what is not computed is not read either. A point at -1 is outside."""
    problem = make_problem(size=(1, 1), padding=(1, 1), spare=0, sigma=0.25, dtype=dtype)
    points = 9
    offsets = problem.offset_mask.unflatten(-1, (problem.groups, 3 * points))
    # Everything but the centre is at -1 or W exactly, or elsewhere outside.
    offsets[..., : 2 * points] = 0.0
    offsets[..., 2:4] = offset
    problem.value[:] = math.nan
    problem.value[..., 5] = 3.0
    offsets[..., 8:10] = offset  # the centre too
    output, grad_value, grad_offset_mask = run(problem)
    assert not output.any()
    assert not grad_value.any()
    assert not grad_offset_mask.any()


def test_nan_mask_of_a_point_inside_propagates_on_host(run):
    problem = make_problem(sigma=0.0, padding=(0, 0), dtype=torch.float32)
    problem.offset_mask[0, 0, 0, 18] = math.nan
    output, grad_value, _ = run(problem)
    assert output[0, 0, 0, :16].isnan().all()
    assert not output[0, 0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinite_pixel_at_the_border_on_host(host, dtype):
    problem = make_problem(
        groups=1, kernel_size=(1, 1), padding=(0, 0), spare=0, batch=1, dtype=dtype
    )
    problem.value[:] = math.inf
    problem.offset_mask[..., :2] = 0.0
    problem.offset_mask[..., 2] = 1.0
    problem.offset_mask[:, 0, :, 1] = -0.5
    problem.offset_mask[:, -1, :, 1] = 0.5
    problem.offset_mask[:, :, 0, 0] = -0.5
    problem.offset_mask[:, :, -1, 0] = 0.5
    output = host.forward(problem)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert output[(slice(None), *corner)].isinf().all()


def test_positions_are_rounded_as_in_the_reference_on_host(run):
    problem = make_problem(kernel_size=(1, 1), padding=(4, 4), offset_scale=0.7, size=(12, 12))
    problem.offset_mask[:, 0, 0, :2] = 10.0
    check_against_reference(problem, run)


def test_positions_far_to_the_right_on_host(run):
    """Hazard 11: positions of 16-bit tensors are float32, which float16 would round by a pixel."""
    problem = make_problem(batch=1, size=(2, 3000), groups=1, dtype=torch.float16)
    check_against_reference(problem, run)


@pytest.mark.parametrize("size", [(6, 7), (1, 7), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides_on_host(layout, size, dtype, host):
    """Also tensors that are not aligned for wide loads."""
    problem = make_problem(size=size, dtype=dtype)
    strided = problem._replace(
        grad_output=layout(problem.grad_output),
        value=layout(problem.value),
        offset_mask=layout(problem.offset_mask),
    )
    check_against_reference(strided, host.run)


def test_vectors_follow_the_alignment_on_host(host):
    aligned = make_problem(dtype=torch.float16)
    assert host.vector(params_of(aligned)[0]) == 8
    wide = torch.cat([aligned.value, aligned.value], dim=-1)
    for start, channels in ((0, 8), (8, 8), (4, 4), (2, 2), (3, 1)):
        value = wide[..., start : start + aligned.value.shape[-1]]
        assert host.vector(params_of(aligned._replace(value=value))[0]) == channels


def test_pitches_beyond_32_bits_on_host(run):
    """Hazard 9: rows that are more than 2^31 elements apart; only pages that are touched exist."""
    problem = make_problem(batch=1, size=(2, 5), dtype=torch.float16)
    pitch = 2**31 + 5 * problem.value.shape[-1]
    pages = mmap.mmap(-1, 2 * (pitch + 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (2 * pitch, pitch, problem.value.shape[-1], 1))
    far = problem._replace(value=value.copy_(problem.value))
    for actual, expected in zip(run(far), run(problem), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("limits", [DEVICES["sm_90"], TINY_DEVICE], ids=["whole", "parts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_same_bits_in_any_order_on_host(host, dtype, limits):
    problem = make_problem(size=(17, 19), groups=3, width=24, dtype=dtype)
    device = host.on(limits)
    first = device.run_deterministic(problem)
    for _ in range(3):
        assert all(map(torch.equal, device.run_deterministic(problem), first))


def test_same_bits_on_every_device_on_host(host):
    """Offsets' gradients and outputs do not depend on the launch."""
    problem = make_problem(size=(17, 19), groups=3, width=24, dtype=torch.float32)
    first = host.run(problem)
    for limits in (*DEVICES.values(), TINY_DEVICE):
        output, _, grad_offset_mask = host.on(limits).run(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_offset_mask, first[2])


def test_only_the_gradients_that_are_needed_on_host(host):
    problem = make_problem(dtype=torch.float32)
    grad_value, grad_offset_mask = host.backward(problem, deterministic=True)
    only_value, untouched = host.backward(problem, deterministic=True, need_offset_mask=False)
    assert torch.equal(only_value, grad_value)
    assert untouched.isnan().all()
    untouched, only_offset_mask = host.backward(problem, need_value=False)
    assert torch.equal(only_offset_mask, grad_offset_mask)
    assert untouched.isnan().all()


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 3)], ids=str)
def test_fast_sums_of_corners_on_host(host, kernel_size, remove_center):
    """Sums of four corners in float16 double the error, as they may; other types do not change."""
    problem = make_problem(
        size=(20, 20), groups=4, kernel_size=kernel_size, remove_center=remove_center
    )
    half = problem.to(torch.float16)
    expected = run_reference(half.to(torch.float64))[0]
    fast = host.forward(half._replace(fast=True))
    assert not torch.equal(fast, host.forward(half))
    # Measured: 8.5e-4 at most.
    assert relative_error(fast, expected) <= 1.5e-3
    for dtype in (torch.float32, torch.bfloat16):
        same = problem.to(dtype)
        assert torch.equal(host.forward(same._replace(fast=True)), host.forward(same))


def test_empty_batch_on_host(host):
    problem = make_problem(batch=0)
    for result, like in zip(host.run(problem), problem[:3], strict=True):
        assert result.shape == like.shape


@pytest.mark.slow
def test_sanitizers_find_nothing_on_host(tmp_path):
    """Runs some of this file's tests in a process with the address and undefined sanitizers."""
    library = compile_host(tmp_path, sanitize=True)
    compiler = os.environ.get("CXX", "g++")
    # With C++'s own library, in which the sanitizer looks up functions when it starts.
    runtimes = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {
        "DCNV4_MM_HOST_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        # Python's own memory is not freed at exit.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    chosen = (
        "recorded and float32 or any_strides or stride_and and bfloat16 or on_every_device "
        "or group_widths and float16"
    )
    options = ["-q", "-x", "-k", f"({chosen}) and not sanitizers", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, *options],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-4000:]
