"""How the CUDA kernels divide a problem: every result has one owner, within a device's limits."""

import random

import pytest
import torch
from dcnv4_host import DEVICES, Params, ValueLaunch, params_of
from dcnv4_problems import make_problem, random_problem


def shape(rng):
    """Sizes alone, as of feature maps."""
    element = rng.choice([2, 4])
    return dict(
        dtype=2 if element == 2 else 1,
        batch=rng.choice([1, 2, 16, 64]),
        out_height=rng.randint(7, 200),
        out_width=rng.randint(7, 300),
        groups=rng.choice([4, 5, 7, 8, 10, 14, 16, 20, 28, 32, 40, 80]),
        group_channels=rng.choice([16, 32, 48, 64]),
    )


def params_for(**sizes):
    """A 3x3 problem of these sizes whose tensors do not exist."""
    ones = (1, 1)
    params = Params(points=9, kernel=(3, 3), stride=ones, padding=ones, dilation=ones, **sizes)
    params.height, params.width = params.out_height, params.out_width
    params.value_pitches.pixel = params.groups * params.group_channels
    params.value_pitches.row = params.value_pitches.pixel * params.width
    params.offset_mask_channels = 27 * params.groups
    return params


def outputs(params, vector):
    pixels = params.batch * params.out_height * params.out_width
    return pixels * params.groups * (params.group_channels // vector)


def used_threads(params, tiling, vector):
    return outputs(params, vector) / (tiling.blocks * tiling.threads)


def check_limits(launch, limits, most_threads):
    assert 32 <= launch.threads <= most_threads
    assert launch.threads % 32 == 0
    assert launch.shared_bytes <= limits.shared_per_block
    # A block can be resident beside what the system reserves.
    assert launch.shared_bytes + 1024 <= limits.shared_per_multiprocessor


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_every_device_on_host(host, device):
    on_device = host.on(DEVICES[device])
    problems = [params_of(random_problem(seed))[0] for seed in range(150)]
    rng = random.Random(0)
    problems += [params_for(**shape(rng)) for _ in range(150)]
    problems += [
        params_for(
            dtype=0, batch=1, out_height=500, out_width=5000, groups=groups, group_channels=1
        )
        for groups in (1, 300)
    ]
    for params in problems:
        check_limits(on_device.tiling(params), on_device.limits, 512)
        for deterministic in (False, True):
            launch = on_device.value_launch(params, deterministic)
            if launch.mode == ValueLaunch.OWNED:
                check_limits(launch.ownership, on_device.limits, 256)
            else:
                assert not deterministic


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
    problems.append(make_problem(batch=1, size=(70, 90), groups=2, width=24, dtype=torch.float32))
    for problem in problems:
        params, _ = params_of(problem)
        launch = on_device.value_launch(params, True)
        assert launch.mode == ValueLaunch.OWNED
        counts = on_device.count("count_owned", params, launch.ownership, problem.value.numel())
        assert (counts == 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_most_threads_have_work_on_host(host, device):
    on_device = host.on(DEVICES[device])
    rng = random.Random(1)
    used = []
    for _ in range(400):
        params = params_for(**shape(rng))
        vector = 8 if params.dtype == 2 else 4
        used.append(used_threads(params, on_device.tiling(params, vector), vector))
    assert min(used) >= 0.79
    assert sum(used) / len(used) >= 0.95


# Maps of FlashInternImage at 224 x 224, with the tiles that cover them exactly.
@pytest.mark.parametrize(("size", "groups"), [(56, 4), (28, 8), (14, 16), (7, 32)])
def test_square_maps_on_host(host, size, groups):
    params = params_for(
        dtype=2, batch=64, out_height=size, out_width=size, groups=groups, group_channels=16
    )
    tiling = host.tiling(params, 8)
    assert used_threads(params, tiling, 8) >= (0.87 if size == 7 else 0.98)
    assert tiling.shared_bytes <= 48 << 10


def test_small_problems_reach_all_multiprocessors_on_host(host):
    params = params_for(dtype=2, batch=1, out_height=25, out_width=42, groups=32, group_channels=16)
    tiling = host.tiling(params, 8)
    assert tiling.blocks >= 2 * host.limits.multiprocessors


@pytest.mark.parametrize(
    ("batch", "size", "groups", "owned"),
    [(64, 7, 32, True), (64, 14, 16, False), (64, 28, 8, False), (1, 14, 16, False)],
)
def test_images_are_owned_where_that_is_faster_on_host(host, batch, size, groups, owned):
    """Many small images, but neither few blocks nor many owners, each of which sees all points."""
    params = params_for(
        dtype=2, batch=batch, out_height=size, out_width=size, groups=groups, group_channels=16
    )
    launch = host.value_launch(params, False)
    assert launch.mode == (ValueLaunch.OWNED if owned else ValueLaunch.ATOMIC)
    launch = host.value_launch(params, True)
    assert launch.mode == ValueLaunch.OWNED
    assert launch.ownership.ranges.value == 1


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 9, 10, 64, 641, 2**16 + 1, 2**31 - 1])
def test_division_on_host(host, divisor):
    edges = {0, 1, divisor - 1, divisor, divisor + 1, 2 * divisor - 1, 2**31 - 1, 2**31 - 2}
    rng = random.Random(divisor)
    numbers = edges | {rng.randrange(2**31) for _ in range(500)}
    for number in numbers:
        if 0 <= number < 2**31:
            assert host.library.divide_on_host(number, divisor) == number // divisor


TOO_LARGE = {
    "rows": dict(height=5, padding=(2**30, 1)),
    "pixels": dict(height=2**15, width=2**15),
    "output": dict(out_height=2**15, out_width=2**15),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_32_bits_cannot_index_is_refused_on_host(host, case):
    params = params_for(dtype=1, batch=1, out_height=8, out_width=8, groups=2, group_channels=16)
    assert host.too_large(params) is None
    for name, number in TOO_LARGE[case].items():
        setattr(params, name, number)
    assert b"2^3" in host.too_large(params)
