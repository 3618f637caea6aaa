"""How the CUDA kernels divide a problem: every result has one owner, within a device's limits."""

import pytest
from bev_cross_attn_host import Params, params_of
from bev_cross_attn_problems import make_problem, random_problem
from dcnv4_host import DEVICES
from flash_deform_attn_host import Level

# BEVFormerV2: 200 x 200 queries, six pictures of 640 x 1600.
SHAPES = [(80, 200), (40, 100), (20, 50), (10, 25)]


def bevformer(dtype=2, **sizes):
    """The problem of an encoder's layer, whose tensors do not exist."""
    levels, start = (Level * len(SHAPES))(), 0
    for level, (height, width) in zip(levels, SHAPES, strict=True):
        level.height, level.width, level.start = height, width, start
        start += height * width
    usual = dict(batch=1, queries=40000, heads=8, channels=32, cameras=6, pillar=4, num_points=8)
    return Params(
        dtype=dtype,
        softmax=True,
        levels=levels,
        num_levels=len(SHAPES),
        pixels=start,
        **{**usual, **sizes},
    )


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_every_device_on_host(host, device):
    on_device = host.on(DEVICES[device])
    problems = [params_of(random_problem(seed))[0] for seed in range(100)]
    problems += [bevformer(dtype) for dtype in range(4)]
    for params in problems:
        tilings = on_device.tiling(params), on_device.point_tiling(params)
        # A kernel can use so much shared memory without being allowed to.
        assert all(tiling.shared_bytes <= 48 << 10 for tiling in tilings)
        for launch in (*tilings, on_device.ownership(params)):
            # The kernels' launch bounds.
            assert 32 <= launch.threads <= 256
            assert launch.threads % 32 == 0
            assert launch.shared_bytes <= on_device.limits.shared_per_block


@pytest.mark.parametrize("device", ["sm_75", "sm_90"])
def test_every_pixel_has_one_owner_on_host(host, device):
    on_device = host.on(DEVICES[device])
    problems = [random_problem(seed) for seed in range(20)]
    problems.append(make_problem(batch=1, cameras=2, shapes=[(70, 90), (35, 45)], width=24))
    for problem in problems:
        params, _ = params_of(problem)
        ownership = on_device.ownership(params)
        counts = on_device.count("count_owned", params, ownership, problem.value.numel())
        assert (counts == 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_bevformer_keeps_every_device_busy_on_host(host, device):
    on_device = host.on(DEVICES[device])
    params = bevformer()
    # Heads of 32 channels of 16 bits: four loads of 16 bytes.
    assert on_device.vector(params) == 8
    tiling = on_device.tiling(params)
    assert params.queries * params.heads * 4 >= 0.98 * tiling.blocks * tiling.threads
    for launch in (tiling, on_device.point_tiling(params), on_device.ownership(params)):
        assert launch.blocks >= 2 * on_device.limits.multiprocessors


TOO_LARGE = {
    "pillar": dict(pillar=2**30),
    "points of a query": dict(num_points=2**29),
    "queries": dict(queries=2**27),
    "channels": dict(channels=2**27),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_the_kernels_cannot_index_is_refused_on_host(host, case):
    assert host.too_large(bevformer()) is None
    assert case.encode() in host.too_large(bevformer(**TOO_LARGE[case]))
