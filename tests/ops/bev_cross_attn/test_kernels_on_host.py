"""The bodies of the CUDA kernels, run on the host, against the float64 reference."""

import math
import os
import subprocess
import sys

import pytest
import torch
from bev_cross_attn_host import SOURCE, params_of
from bev_cross_attn_problems import (
    DTYPES,
    IDS,
    check_against_reference,
    make_problem,
    random_problem,
    run_reference,
)
from dcnv4_host import DEVICES, compile_host
from flash_deform_attn_host import TINY_DEVICE
from helpers import ROOT


@pytest.fixture
def runs(host):
    """The ways to the gradient of value: atomic additions, and owners of large or small parts."""
    return host.run, host.run_deterministic, host.on(TINY_DEVICE).run_deterministic


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 30, 10)], ids=str)
def test_random_problems_on_host(seeds, runs):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed), *runs)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


def test_random_problems_on_every_device_on_host(host):
    devices = [host.on(limits).run_deterministic for limits in DEVICES.values()]
    for seed in range(100, 104):
        check_against_reference(random_problem(seed), *devices)


@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 13, 32, 48, 1100])
def test_head_widths_on_host(width, dtypes, runs):
    """A head's vectors need not be a power of two. The last has several slices."""
    problem = make_problem(width=width, queries=5, points=2, batch=1, dtypes=dtypes)
    check_against_reference(problem, *runs)


@pytest.mark.parametrize("cameras", [1, 6])
@pytest.mark.parametrize(("levels", "points", "pillar"), [(1, 1, 1), (3, 5, 2), (4, 2, 4)])
def test_cameras_levels_points_and_pillars_on_host(cameras, levels, points, pillar, runs):
    shapes = [(level + 1, 2 * level + 1) for level in range(levels)]
    problem = make_problem(
        cameras=cameras,
        shapes=shapes,
        points=points,
        pillar=pillar,
        width=5,
        dtypes=DTYPES[1],
    )
    check_against_reference(problem, *runs)


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]], ids=str)
def test_several_blocks_of_ragged_hits_on_host(host, dtypes):
    """No block may mix two samples. A camera sees neighbouring queries, as in a BEV."""
    problem = make_problem(
        queries=301, cameras=4, heads=3, points=2, width=32, density=0.0, dtypes=dtypes
    )
    for camera in range(4):
        # Neighbours share a stretch; the last fifth is seen by none.
        problem.hits[:, camera, 60 * camera : 60 * camera + 75] = True
    assert host.tiling(params_of(problem)[0]).blocks > 2 * problem.value.shape[0]
    check_against_reference(problem, host.run, host.run_deterministic)


def test_more_points_than_fit_into_shared_memory_on_host(host):
    problem = make_problem(batch=1, cameras=1, queries=2, points=350, width=4, density=1.0)
    params, _ = params_of(problem)
    tiny = host.on(TINY_DEVICE)
    assert tiny.tiling(params).points < 2 * 350
    assert tiny.ownership(params).points < 2 * 350
    assert tiny.point_tiling(params).points < 2 * 350
    check_against_reference(problem, tiny.run_deterministic)
    for actual, expected in zip(tiny.run(problem), host.run(problem), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("density", [0.0, 0.2])
@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[3]], ids=str)
def test_what_no_camera_sees_is_not_read_on_host(density, dtypes, runs):
    problem = make_problem(cameras=4, queries=20, points=2, density=density, dtypes=dtypes)
    unseen = ~problem.hits.any(1)
    assert unseen.any()
    expected = run_reference(problem.to(*DTYPES[0]))
    problem.references[~problem.hits] = math.nan
    problem.offsets_logits[unseen] = math.nan
    for run in runs:
        for actual, wanted in zip(run(problem), expected, strict=True):
            torch.testing.assert_close(actual.double(), wanted, rtol=0.05, atol=0.05)
            assert not actual.isnan().any()


@pytest.mark.parametrize("position", [math.nan, math.inf, -math.inf, 1e30])
def test_points_outside_count_for_nothing_on_host(position, runs):
    problem = make_problem(pillar=2, dtypes=DTYPES[1])
    problem.references[..., 1, 0] = position
    check_against_reference(problem, *runs)
    *_, grad_points = runs[0](problem)
    grad_offsets = problem._replace(offsets_logits=grad_points).points()[0]
    assert not grad_offsets[..., 1::2, :].any()


@pytest.mark.parametrize("logits", [math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite_on_host(logits, runs):
    """As torch's softmax: -Inf has no share, unless all logits are; +Inf and NaN spoil the head."""
    problem = make_problem(density=1.0, reach=-0.3, dtypes=DTYPES[1])
    numbers = problem.points()[1]
    numbers[0, 0, 0, 0, 1] = logits
    numbers[0, 1, 0] = -math.inf
    expected = run_reference(problem)
    for run in runs:
        for actual, wanted in zip(run(problem), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert expected[0].isnan().any()


def test_vectors_follow_the_alignment_on_host(host):
    for width, channels in ((16, 8), (12, 4), (6, 2), (5, 1)):
        problem = make_problem(width=width, dtypes=DTYPES[2])
        assert host.vector(params_of(problem)[0]) == channels
    # A single pixel per camera: how far apart cameras are counts.
    problem = make_problem(batch=1, shapes=[(1, 1)], heads=1, width=12, dtypes=DTYPES[2])
    assert host.vector(params_of(problem)[0]) == 4
    check_against_reference(problem, host.run)


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]], ids=str)
def test_same_bits_in_any_order_on_every_device_on_host(host, dtypes):
    """The deterministic way does not depend on the launch either."""
    problem = make_problem(shapes=[(13, 9), (5, 6)], heads=3, points=2, dtypes=dtypes)
    first = host.run_deterministic(problem)
    assert all(map(torch.equal, host.run_deterministic(problem), first))
    for limits in (*DEVICES.values(), TINY_DEVICE):
        device = host.on(limits)
        assert all(map(torch.equal, device.run_deterministic(problem), first))
        output, _, grad_points = device.run(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_points, first[2])


@pytest.mark.parametrize("deterministic", [False, True])
def test_only_the_gradients_that_are_needed_on_host(host, deterministic):
    problem = make_problem(dtypes=DTYPES[0])
    grad_value, grad_points = host.backward(problem, deterministic)
    only_value, untouched = host.backward(problem, deterministic, need_points=False)
    # In the order of atomic additions the last bits may differ.
    torch.testing.assert_close(only_value, grad_value)
    assert untouched.isnan().all()
    untouched, only_points = host.backward(problem, deterministic, need_value=False)
    assert torch.equal(only_points, grad_points)
    assert untouched.isnan().all()


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=str)
def test_nothing_to_sample_on_host(sizes, runs):
    """Without queries the gradient of value is zero."""
    problem = make_problem(**sizes)
    for run in runs:
        output, grad_value, _ = run(problem)
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
        "DCNV4_MM_BEV_HOST_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        # Python's own memory is not freed at exit.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    chosen = "((random_problems_on_host and range) or alignment or nothing or shared) and not sanit"
    options = ["-q", "-x", "-k", chosen, "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, *options],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-4000:]
