"""The bodies of the CUDA kernels, run on the host, against the float64 reference.

Numbered defects are those of the original operator: inputs for which it gives wrong results.
"""

import math
import mmap
import os
import subprocess
import sys

import pytest
import torch
from dcnv4_host import DEVICES, compile_host
from flash_deform_attn_host import SOURCE, TINY_DEVICE, params_of
from flash_deform_attn_problems import (
    DTYPES,
    GOLDEN_CASES,
    IDS,
    Problem,
    check_against_reference,
    check_golden,
    golden_inputs,
    make_problem,
    random_problem,
    run_reference,
)
from helpers import ROOT

from dcnv4_mm.ops.flash_deform_attn.layout import read_spatial_shapes, unpack


def check(problem, run):
    check_against_reference(problem, run, one_sum=True)


@pytest.fixture(params=["default", "deterministic", "parts"])
def run(host, request):
    """The ways to the gradient of value: atomic additions, and owners of large or small parts."""
    return {
        "default": host.run,
        "deterministic": host.run_deterministic,
        "parts": host.on(TINY_DEVICE).run_deterministic,
    }[request.param]


def golden_problem(case, dtype):
    value, points, grad_output = (tensor.to(dtype) for tensor in golden_inputs(case))
    locations, logits = unpack(points, len(case["shapes"]), case["P"])
    sizes = read_spatial_shapes(case["shapes"])
    return Problem(True, grad_output, value, locations, logits, sizes)


@pytest.mark.parametrize("name", GOLDEN_CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_recorded_results_on_host(name, dtype, run):
    case = GOLDEN_CASES[name]
    check_golden(case, run(golden_problem(case, dtype)), dtype)


@pytest.mark.parametrize("seeds", [range(start, start + 15) for start in range(0, 60, 15)], ids=str)
def test_random_problems_on_host(seeds, run):
    for seed in seeds:
        try:
            check(random_problem(seed), run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("device", DEVICES)
def test_random_problems_on_every_device_on_host(host, device):
    for seed in range(100, 108):
        check(random_problem(seed), host.on(DEVICES[device]).run_deterministic)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 2, 13, 32, 48, 129, 1100])
def test_head_widths_on_host(width, dtypes, packed, run):
    """Defect 16: a head's vectors need not be a power of two. The last has several slices."""
    problem = make_problem(width=width, queries=5, dtypes=dtypes, packed=packed)
    check(problem, run)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("points", [1, 4, 8])
def test_levels_and_points_on_host(levels, points, packed, run):
    problem = make_problem(
        shapes=[(level + 1, 2 * level + 1) for level in range(levels)],
        points=points,
        dtypes=DTYPES[1],
        packed=packed,
    )
    check(problem, run)


@pytest.mark.parametrize("heads", [1, 3, 8, 16])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]], ids=str)
def test_numbers_of_heads_on_host(heads, dtypes, run):
    problem = make_problem(heads=heads, dtypes=dtypes, packed=True)
    check(problem, run)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_encoder_in_a_batch_on_host(host, packed, dtypes):
    """Defect 1: no block may mix two images. An encoder has a query for every pixel."""
    shapes = [(13, 11), (7, 5), (4, 3), (2, 1)]
    queries = sum(height * width for height, width in shapes) + 3
    assert queries % 2
    problem = make_problem(
        shapes=shapes, queries=queries, heads=3, width=32, dtypes=dtypes, packed=packed
    )
    check(problem, host.run)
    check(problem, host.run_deterministic)
    params, _ = params_of(problem)
    assert host.tiling(params).blocks > problem.value.shape[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[1]], ids=str)
def test_more_points_than_fit_into_shared_memory_on_host(host, dtypes, packed):
    problem = make_problem(batch=1, queries=3, points=350, dtypes=dtypes, packed=packed, width=4)
    params, _ = params_of(problem)
    tiny = host.on(TINY_DEVICE)
    assert tiny.tiling(params).points < 2 * 350
    assert tiny.ownership(params).points < 2 * 350
    # Without a softmax, no number of a point is needed twice.
    assert (tiny.point_tiling(params).points < 2 * 350) == packed
    check(problem, tiny.run)
    check(problem, tiny.run_deterministic)


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_defect_14_points_outside_share_in_the_softmax_on_host(dtypes, run):
    """Their gradients enter those of all logits: as zeros, whatever was in shared memory."""
    problem = make_problem(packed=True, dtypes=dtypes)
    problem.locations[..., ::2, :] = 3.0
    check(problem, run)
    *_, grad = run(problem)
    assert not grad.isnan().any()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [24, 48, 80])
def test_defect_15_heads_that_span_warps_on_host(width, packed, run):
    """What a thread reads was written in an earlier phase: in a phase, threads have no order."""
    problem = make_problem(width=width, heads=5, dtypes=DTYPES[1], packed=packed)
    check(problem, run)


@pytest.mark.parametrize("dtypes", [DTYPES[2], DTYPES[3]], ids=str)
def test_16_bit_gradients_on_host(dtypes, run):
    """Defect 17: sums of many 16-bit gradients are float32 until the last one is added."""
    problem = make_problem(shapes=[(2, 2)], queries=400, reach=-0.2, dtypes=dtypes)
    check(problem, run)


def test_locations_stay_float32_beside_16_bits_on_host(run):
    """Rounding them to float16 would move points on a map of 300 by a tenth of a pixel."""
    problem = make_problem(shapes=[(1, 300)], points=8, packed=True, dtypes=DTYPES[4])
    check(problem, run)


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("location", [math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30])
def test_points_outside_count_for_nothing_on_host(location, dtypes, run):
    problem = make_problem(dtypes=dtypes)
    # The second point's x, the third's y, with weights that are no numbers.
    problem.locations[..., 1, 0] = location
    problem.locations[..., 2, 1] = location
    problem.weights[..., 1] = math.nan
    problem.weights[..., 2] = math.inf
    results = run(problem)

    without = problem._replace(weights=problem.weights.clone())
    without.weights[..., 1:3] = 0.0
    check(without, lambda _: results)
    assert not results[2][..., 1:3, :].any()
    assert not results[3][..., 1:3].any()


def test_points_on_the_border_count_for_nothing_on_host(run):
    """A point at -1 or H exactly is outside, and so is what it would read."""
    problem = make_problem(shapes=[(4, 4)], reach=0.0)
    # In pixels: x * 4 - 0.5.
    problem.locations[..., 0, :] = torch.tensor([-0.125, 0.5])
    problem.locations[..., 1, :] = torch.tensor([0.5, 1.125])
    check(problem, run)
    _, _, grad_locations, grad_weights = run(problem)
    assert not grad_locations[..., :2, :].any()
    assert not grad_weights[..., :2].any()


def test_nan_weight_of_a_point_inside_propagates_on_host(run):
    problem = make_problem(reach=-0.2, dtypes=DTYPES[1])
    problem.weights[0, 0, 0, 0, 0] = math.nan
    output, grad_value, *_ = run(problem)
    assert output[0, 0, :16].isnan().all()
    assert not output[0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


@pytest.mark.parametrize("logits", [math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite_on_host(logits, run):
    """As torch's softmax: -Inf has no share, unless all logits are; +Inf and NaN spoil the head."""
    problem = make_problem(packed=True, reach=-0.2, dtypes=DTYPES[1])
    problem.weights[0, 0, 0, 0, 1] = logits
    problem.weights[0, 1, 0] = -math.inf
    # A part of the points that a thread sums.
    problem.weights[0, 2, 0].view(-1)[::4] = -math.inf
    expected = run_reference(problem)
    for actual, wanted in zip(run(problem), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert expected[0].isnan().any()
    assert not expected[0][0, 2].isnan().any()


def test_infinite_pixel_at_the_border_on_host(host):
    problem = make_problem(shapes=[(4, 4)], points=4)
    problem.value[:] = math.inf
    problem.weights[:] = 1.0
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    problem.locations[:] = corners
    assert host.forward(problem).isinf().all()


def test_vectors_follow_the_alignment_on_host(host):
    aligned = make_problem(dtypes=DTYPES[2])
    assert host.vector(params_of(aligned)[0]) == 8
    wide = torch.cat([aligned.value, aligned.value], dim=-1)
    for start, channels in ((0, 8), (8, 8), (4, 4), (2, 2), (3, 1)):
        value = wide[..., start : start + aligned.value.shape[-1]]
        problem = aligned._replace(value=value)
        assert host.vector(params_of(problem)[0]) == channels
        check(problem, host.run)


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_any_strides_on_host(dtypes, host):
    problem = make_problem(dtypes=dtypes)
    strided = problem._replace(
        value=problem.value.transpose(0, 2).contiguous().transpose(0, 2),
        locations=problem.locations.transpose(1, 2).contiguous().transpose(1, 2),
        weights=problem.weights.transpose(0, 1).contiguous().transpose(0, 1),
        grad_output=problem.grad_output.transpose(0, 1).contiguous().transpose(0, 1),
    )
    check(strided, host.run)


def test_pitches_beyond_32_bits_on_host(run):
    """Images that are more than 2^31 elements apart; only pages that are touched exist."""
    problem = make_problem(dtypes=DTYPES[2])
    strides = problem.value.stride()
    pitch = 2**31 + strides[0]
    pages = mmap.mmap(-1, 2 * (pitch + 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (pitch, *strides[1:]))
    far = problem._replace(value=value.copy_(problem.value))
    for actual, expected in zip(run(far), run(problem), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]], ids=str)
def test_same_bits_in_any_order_on_every_device_on_host(host, dtypes, packed):
    """The deterministic way does not depend on the launch either."""
    problem = make_problem(shapes=[(13, 9), (5, 6)], heads=3, dtypes=dtypes, packed=packed)
    first = host.run_deterministic(problem)
    assert all(map(torch.equal, host.run_deterministic(problem), first))
    for limits in (*DEVICES.values(), TINY_DEVICE):
        device = host.on(limits)
        assert all(map(torch.equal, device.run_deterministic(problem), first))
        output, _, *grad_points = device.run(problem)
        assert torch.equal(output, first[0])
        assert all(map(torch.equal, grad_points, first[2:]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_only_the_gradients_that_are_needed_on_host(host, deterministic, packed):
    problem = make_problem(dtypes=DTYPES[0], packed=packed)
    grad_value, *grad_points = host.backward(problem, deterministic)
    only_value, *untouched = host.backward(problem, deterministic, need_points=False)
    # In the order of atomic additions the last bits may differ.
    torch.testing.assert_close(only_value, grad_value)
    assert all(grad.isnan().all() for grad in untouched)
    untouched, *only_points = host.backward(problem, deterministic, need_value=False)
    assert all(map(torch.equal, only_points, grad_points))
    assert untouched.isnan().all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=str)
def test_nothing_to_sample_on_host(sizes, packed, run):
    """Without queries the gradient of value is zero."""
    problem = make_problem(**sizes, packed=packed)
    output, grad_value, *_ = run(problem)
    assert output.numel() == 0
    assert grad_value.shape == problem.value.shape
    assert not grad_value.any()


@pytest.mark.slow
def test_sanitizers_find_nothing_on_host(tmp_path):
    """Runs some of this file's tests in a process with the address and undefined sanitizers."""
    library = compile_host(tmp_path, source=SOURCE, sanitize=True)
    compiler = os.environ.get("CXX", "g++")
    # With C++'s own library, in which the sanitizer looks up functions when it starts.
    runtimes = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {
        "DCNV4_MM_ATTENTION_HOST_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        # Python's own memory is not freed at exit.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    chosen = "(recorded and 64) or (random_problems_on_host and range) or alignment or nothing"
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
