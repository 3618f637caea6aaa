"""How the CUDA kernels divide a problem: every result has one owner, within a device's limits."""

import random

import pytest
from dcnv4_host import DEVICES
from flash_deform_attn_host import Level, Params, params_of
from flash_deform_attn_problems import make_problem, random_problem


def params_for(*, shapes, **sizes):
    """A problem of these sizes whose tensors do not exist."""
    levels, start = (Level * len(shapes))(), 0
    for level, (height, width) in zip(levels, shapes, strict=True):
        level.height, level.width, level.start = height, width, start
        start += height * width
    return Params(levels=levels, num_levels=len(shapes), pixels=start, **sizes)


def encoder(rng):
    """Sizes alone, as of detectors: every level has half the edges of the one before."""
    height, width, levels = rng.randint(20, 200), rng.randint(20, 300), rng.choice([1, 3, 4, 5])
    shapes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(levels)]
    pixels = sum(height * width for height, width in shapes)
    return dict(
        dtype=rng.choice([1, 2]),
        softmax=rng.random() < 0.5,
        batch=rng.choice([1, 2, 5]),
        queries=rng.choice([100, 300, 900, pixels]),
        heads=rng.choice([1, 2, 4, 5, 8, 12, 16]),
        channels=rng.choice([13, 16, 24, 32, 48, 64, 100, 256]),
        num_points=rng.choice([1, 3, 4, 8]),
        shapes=shapes,
    )


def outputs(params, vector):
    return params.batch * params.queries * params.heads * (params.channels // vector)


def used_threads(params, tiling, vector):
    return outputs(params, vector) / (tiling.blocks * tiling.threads)


def check_limits(launch, limits):
    # The kernels' launch bounds.
    assert 32 <= launch.threads <= 256
    assert launch.threads % 32 == 0
    assert launch.shared_bytes <= limits.shared_per_block
    # A block can be resident beside what the system reserves.
    assert launch.shared_bytes + 1024 <= limits.shared_per_multiprocessor


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_every_device_on_host(host, device):
    on_device = host.on(DEVICES[device])
    problems = [params_of(random_problem(seed))[0] for seed in range(150)]
    rng = random.Random(0)
    problems += [params_for(**encoder(rng)) for _ in range(150)]
    problems += [
        params_for(
            dtype=0,
            softmax=True,
            batch=1,
            queries=50,
            heads=heads,
            channels=channels,
            num_points=points,
            shapes=[(500, 5000)],
        )
        for heads in (1, 300)
        for channels in (1, 20000)
        for points in (1, 5000)
    ]
    for params in problems:
        # A kernel can use so much shared memory without being allowed to.
        for tiling in (on_device.tiling(params), on_device.point_tiling(params)):
            check_limits(tiling, on_device.limits)
            assert tiling.shared_bytes <= 48 << 10
        check_limits(on_device.ownership(params), on_device.limits)


def test_every_output_has_one_thread_on_host(host):
    for seed in range(60):
        problem = random_problem(seed)
        params, _ = params_of(problem)
        tiling = host.tiling(params, vector=1)
        counts = host.count("count_outputs", params, tiling, problem.grad_output.numel())
        assert (counts == 1).all(), seed


@pytest.mark.parametrize("device", ["sm_75", "sm_90"])
def test_every_pixel_has_one_owner_on_host(host, device):
    on_device = host.on(DEVICES[device])
    problems = [random_problem(seed) for seed in range(30)]
    problems.append(make_problem(batch=1, shapes=[(70, 90), (35, 45)], width=24))
    for problem in problems:
        params, _ = params_of(problem)
        counts = on_device.count(
            "count_owned", params, on_device.ownership(params), problem.value.numel()
        )
        assert (counts == 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_most_threads_have_work_on_host(host, device):
    on_device = host.on(DEVICES[device])
    rng = random.Random(1)
    used = []
    for _ in range(400):
        params = params_for(**encoder(rng))
        vector = on_device.vector(params)
        used.append(used_threads(params, on_device.tiling(params), vector))
    assert min(used) >= 0.79
    assert sum(used) / len(used) >= 0.95


# Levels of an image of 800 x 1333 in DINO.
LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("points", [4, 8])
def test_detectors_on_host(host, points, device):
    on_device = host.on(DEVICES[device])
    params = params_for(
        dtype=2, softmax=True, batch=2, heads=8, channels=32, num_points=points, shapes=LEVELS
    )
    for queries in (params.pixels, 900):
        params.queries = queries
        tiling = on_device.tiling(params)
        assert used_threads(params, tiling, 8) >= 0.98
        assert tiling.blocks >= 2 * on_device.limits.multiprocessors
        # Three blocks or more at a time leave at least a third of the memory to the L1 cache.
        assert 3 * tiling.shared_bytes <= on_device.limits.shared_per_multiprocessor * 2 / 3


TOO_LARGE = {
    "levels": dict(num_levels=257),
    "points": dict(num_points=2**29),
    "queries": dict(queries=2**27),
    "channels": dict(channels=2**27),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_the_kernels_cannot_index_is_refused_on_host(host, case):
    params = params_for(
        dtype=1, batch=1, queries=5, heads=8, channels=32, num_points=4, shapes=LEVELS
    )
    assert host.too_large(params) is None
    for name, number in TOO_LARGE[case].items():
        setattr(params, name, number)
    assert case.encode() in host.too_large(params)
