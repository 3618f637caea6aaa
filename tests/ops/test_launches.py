"""How the CUDA code divides problems among blocks and threads, within every device's limits.

Launches are recorded on the host, where kernels of these sizes do not run: tensors need no memory
of their own.
"""

import random
import re

import pytest
import torch
from helpers import ROOT
from ops.backends import DEVICES, HOST_RUNS, Backend, host_cuda
from ops.bev_cross_attn import problems as bev
from ops.dcnv4 import problems as dcnv4
from ops.flash_deform_attn import problems as attention
from ops.measures import untouched

OPERATORS = {"dcnv4": dcnv4, "flash_deform_attn": attention, "bev_cross_attn": bev}
MULTIPROCESSORS = {"sm_75": 40, "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132} | {
    "sm_100": 148,
    "sm_120": 170,
}
MOST_SHARED = {"sm_75": 64, "sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90": 228} | {
    "sm_100": 228,
    "sm_120": 100,
}
operators = torch.ops.dcnv4_mm_host


def kernel_sources(operator):
    folder = {"bev_cross_attn": "flash_deform_attn"}.get(operator, operator)
    files = sorted((ROOT / "csrc" / folder).glob("*.cuh"))
    return "\n".join(file.read_text() for file in files)


def launch_bounds(operator):
    """The most threads that each kernel is compiled for."""
    found = re.findall(r"__launch_bounds__\((\d+)[^;{]*?\)\s+(\w+)\(", kernel_sources(operator))
    return {kernel: int(threads) for threads, kernel in found}


def launches_of(operator, device, run):
    host = host_cuda(operator)
    with host.dry(device):
        run()
    return host.launches()


def overlapping(shape, dtype, pitch):
    """A tensor whose pixels overlap, of any size: rows and columns are ``pitch`` elements apart."""
    _, rows, columns, channels = shape
    memory = torch.zeros(pitch * (rows + columns) + channels, dtype=dtype)
    return memory.as_strided(shape, (0, pitch, pitch, 1))


def dcnv4_shape(dtype, *, batch, size, groups, width, **others):
    """A 3x3 problem of these sizes."""
    value = overlapping((batch, *size, groups * width), dtype, 16)
    offset_mask = torch.zeros(27 * groups, dtype=dtype).expand(batch, *size, -1)
    geometry = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]} | others
    return dcnv4.Problem(value, value, offset_mask, [3, 3], *geometry.values(), groups, 1.0, False)


def attention_shape(dtype, *, batch, shapes, queries, heads, width, points):
    pixels = sum(height * columns for height, columns in shapes)
    value = overlapping((batch, pixels, heads, width), dtype, 16)
    sizes = [side for shape in shapes for side in shape]
    per_head = (len(shapes), points)
    weights = torch.zeros(per_head, dtype=dtype).expand(batch, queries, heads, *per_head)
    locations = torch.zeros(*per_head, 2, dtype=dtype).expand(*weights.shape, 2)
    grad_output = torch.zeros(heads * width, dtype=dtype).expand(batch, queries, -1)
    return attention.Problem(False, grad_output, value, locations, weights, sizes)


# BEVFormerV2: 200 x 200 queries, six images of 640 x 1600.
BEV_SHAPES = [(80, 200), (40, 100), (20, 50), (10, 25)]


def bev_shape(dtype, *, queries=40000, heads=8, width=32, cameras=6, pillar=4, points=8):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pixels = sum(height * columns for height, columns in BEV_SHAPES)
    points_ = untouched(1, queries, heads, 3 * len(BEV_SHAPES) * points, dtype=dtype)
    reference_points = torch.zeros(2, dtype=wide).expand(1, cameras, queries, pillar, 2)
    reference_points = (
        reference_points if pillar == 1 else untouched(*reference_points.shape, dtype=wide)
    )
    return bev.Problem(
        torch.zeros(heads * width, dtype=dtype).expand(1, queries, -1),
        untouched(1, cameras, pixels, heads, width, dtype=dtype),
        points_,
        reference_points,
        untouched(1, cameras, queries, dtype=torch.uint8).view(torch.bool),
        [side for shape in BEV_SHAPES for side in shape],
        points,
    )


def random_dcnv4(rng):
    size = rng.randint(7, 200), rng.randint(7, 300)
    groups = rng.choice([4, 5, 7, 8, 10, 14, 16, 20, 28, 32, 40, 80])
    width = rng.choice([16, 32, 48, 64])
    # Results do take memory, though nothing is written to it.
    most = max(1, 2**27 // (size[0] * size[1] * groups * width))
    return dcnv4_shape(
        rng.choice([torch.float16, torch.float32]),
        batch=min(rng.choice([1, 2, 16]), most),
        size=size,
        groups=groups,
        width=width,
    )


def random_encoder(rng):
    """As of detectors: every level has half the edges of the one before."""
    height, width, levels = rng.randint(20, 200), rng.randint(20, 300), rng.choice([1, 3, 4, 5])
    shapes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(levels)]
    pixels = sum(height * width for height, width in shapes)
    return attention_shape(
        rng.choice([torch.float16, torch.float32]),
        batch=rng.choice([1, 2]),
        shapes=shapes,
        queries=rng.choice([100, 300, 900, pixels]),
        heads=rng.choice([1, 2, 4, 5, 8, 12, 16]),
        width=rng.choice([16, 24, 32, 48, 64, 256]),
        points=rng.choice([1, 3, 4, 8]),
    )


RANDOM_SHAPES = {"dcnv4": random_dcnv4, "flash_deform_attn": random_encoder}
EXTREME_SHAPES = {
    "dcnv4": [
        dcnv4_shape(torch.float64, batch=1, size=(500, 5000), groups=1, width=1),
        dcnv4_shape(torch.float64, batch=1, size=(50, 300), groups=300, width=1),
    ],
    "flash_deform_attn": [
        attention_shape(
            torch.float64,
            batch=1,
            queries=50,
            heads=heads,
            width=width,
            points=points,
            shapes=[(10, 50)],
        )
        for heads in (1, 300)
        for width in (1, 1000)
        for points in (1, 5000)
    ],
    "bev_cross_attn": [bev_shape(torch.float64), bev_shape(torch.float16)],
}


def forward(problem):
    return getattr(operators, f"{problem.name}_forward")(*problem.inputs())


def backward(problem, deterministic, *needs):
    function = getattr(operators, f"{problem.name}_backward")
    return function(problem.grad_output, *problem.inputs(), deterministic, *needs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_limits_of_every_device_on_host(operator, device):
    rng = random.Random(0)
    problems = [OPERATORS[operator].random_problem(seed) for seed in range(60)]
    if operator == "dcnv4":
        # Too large for a block on any device.
        problems.append(dcnv4.make_problem(batch=1, size=(120, 168), dtype=torch.float16))
    shapes = EXTREME_SHAPES[operator] + [
        RANDOM_SHAPES[operator](rng) for _ in range(60) if operator in RANDOM_SHAPES
    ]

    def run():
        for problem in problems + shapes:
            forward(problem)
            # Fixed-point sums do take memory.
            backward(problem, True, problem.value.numel() < 2**22, True)
        for problem in problems:
            backward(problem, False, True, False)

    launches = launches_of(operator, device, run)
    bounds = launch_bounds(operator)
    assert {launch.kernel for launch in launches} == set(bounds)
    for launch in launches:
        assert 32 <= launch.threads <= bounds[launch.kernel]
        assert launch.threads % 32 == 0
        # A block can be resident beside what the system reserves.
        assert launch.shared_bytes + 1024 <= MOST_SHARED[device] << 10


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_kernel_is_specified_on_host(operator):
    """The backends of test_kernels.py launch every kernel."""
    problem = OPERATORS[operator].make_problem()
    larger = OPERATORS[operator].random_problem(3)
    host, found = host_cuda(operator), set()
    host.launches()
    for name in HOST_RUNS:
        backend = Backend(name, operator)
        backend.run(problem)
        backend.run(larger)
        found |= {launch.kernel for launch in host.launches()}
    assert found == set(re.findall(r"(\w+_kernel)\(const", kernel_sources(operator)))


def used_threads(problem, launch):
    """Of threads that load 16 bytes at a time."""
    return (
        problem.grad_output.numel() * problem.value.itemsize / 16 / (launch.blocks * launch.threads)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", RANDOM_SHAPES)
def test_most_threads_have_work_on_host(operator, device):
    rng = random.Random(1)
    problems = [RANDOM_SHAPES[operator](rng) for _ in range(150)]
    launches = launches_of(operator, device, lambda: [forward(problem) for problem in problems])
    used = [used_threads(*pair) for pair in zip(problems, launches, strict=True)]
    assert min(used) >= 0.79
    assert sum(used) / len(used) >= 0.95


# Maps of FlashInternImage at 224 x 224, with the tiles that cover them exactly.
@pytest.mark.parametrize(("size", "groups"), [(56, 4), (28, 8), (14, 16), (7, 32)])
def test_square_maps_on_host(size, groups):
    problem = dcnv4_shape(torch.float16, batch=64, size=(size, size), groups=groups, width=16)
    (launch,) = launches_of("dcnv4", "sm_90", lambda: forward(problem))
    assert used_threads(problem, launch) >= (0.87 if size == 7 else 0.98)
    assert launch.shared_bytes <= 48 << 10


def test_small_problems_reach_all_multiprocessors_on_host():
    problem = dcnv4_shape(torch.float16, batch=1, size=(25, 42), groups=32, width=16)
    (launch,) = launches_of("dcnv4", "sm_90", lambda: forward(problem))
    assert launch.blocks >= 2 * MULTIPROCESSORS["sm_90"]


# Levels of an image of 800 x 1333 in DINO.
LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("points", [4, 8])
def test_detectors_on_host(points, device):
    pixels = sum(height * width for height, width in LEVELS)
    for queries in (pixels, 900):
        problem = attention_shape(
            torch.float16,
            batch=2,
            shapes=LEVELS,
            queries=queries,
            heads=8,
            width=32,
            points=points,
        )
        (launch,) = launches_of("flash_deform_attn", device, lambda p=problem: forward(p))
        assert used_threads(problem, launch) >= 0.98
        assert launch.blocks >= 2 * MULTIPROCESSORS[device]
        # Three blocks or more at a time leave at least a third of the memory to the L1 cache.
        assert 3 * launch.shared_bytes <= (MOST_SHARED[device] << 10) * 2 / 3


@pytest.mark.parametrize("device", DEVICES)
def test_bevformer_keeps_every_device_busy_on_host(device):
    problem = bev_shape(torch.float16)

    def run():
        forward(problem)
        backward(problem, True, True, True)

    launch, *others = launches_of("bev_cross_attn", device, run)
    assert used_threads(problem, launch) >= 0.98
    assert all(each.blocks >= 2 * MULTIPROCESSORS[device] for each in (launch, *others))


@pytest.mark.parametrize(("start", "channels"), [(0, 8), (8, 8), (4, 4), (2, 2), (3, 1)])
@pytest.mark.parametrize("operator", ["dcnv4", "flash_deform_attn"])
def test_loads_are_as_wide_as_the_alignment_allows_on_host(operator, start, channels):
    if operator == "dcnv4":
        problem = dcnv4.make_problem(size=(24, 28), dtype=torch.float16)
    else:
        problem = attention.make_problem(queries=500, dtypes=attention.DTYPES[2])
    wide = torch.cat([problem.value, problem.value], dim=-1)
    value = wide[..., start : start + problem.value.shape[-1]]
    moved = problem._replace(value=value)
    (launch,) = launches_of(operator, "sm_90", lambda: forward(moved))
    # A thread of the 3x3 kernel has two of the widest vectors, where groups are wide enough.
    vectors = 2 if operator == "dcnv4" and channels == 8 else 1
    assert 0.79 <= used_threads(problem, launch) * 8 / (channels * vectors) <= 1


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 9, 10, 64, 641, 2**16 + 1, 2**31 - 1])
def test_division_on_host(divisor):
    edges = {0, 1, divisor - 1, divisor, divisor + 1, 2 * divisor - 1, 2**31 - 1, 2**31 - 2}
    rng = random.Random(divisor)
    numbers = edges | {rng.randrange(2**31) for _ in range(500)}
    for number in numbers:
        if 0 <= number < 2**31:
            assert host_cuda("dcnv4").library.host_cuda_divide(number, divisor) == number // divisor


def small_dcnv4(size=(8, 8), **geometry):
    return dcnv4_shape(torch.float32, batch=1, size=size, groups=2, width=16, **geometry)


def small_attention(shapes=LEVELS, queries=5, heads=8, width=32, points=4, dtype=torch.float16):
    sizes = [side for shape in shapes for side in shape]
    per_head = (len(shapes), points)
    weights = untouched(1, queries, heads, *per_head, dtype=dtype)
    return attention.Problem(
        False,
        None,
        untouched(1, sum(h * w for h, w in shapes), heads, width, dtype=dtype),
        untouched(*weights.shape, 2, dtype=dtype),
        weights,
        sizes,
    )


TOO_LARGE = {
    "dcnv4": (small_dcnv4, {"pixels": dict(size=(2**15, 2**15))}),
    "flash_deform_attn": (
        small_attention,
        {
            "levels": dict(shapes=[(1, 1)] * 257),
            "points": dict(points=2**28, heads=1, width=1, queries=1),
            "queries": dict(queries=2**30, heads=1, width=1, points=1, shapes=[(1, 1)]),
            "channels": dict(heads=2, width=2**29, queries=1, points=1, shapes=[(1, 1)]),
        },
    ),
    "bev_cross_attn": (
        lambda **sizes: bev_shape(torch.float16, **sizes),
        {"pillar": dict(pillar=2**30, queries=1, cameras=1)},
    ),
}


@pytest.mark.parametrize(
    ("operator", "reason"),
    [(operator, reason) for operator, (_, cases) in TOO_LARGE.items() for reason in cases],
)
def test_what_32_bits_cannot_index_is_refused_on_host(operator, reason):
    make, cases = TOO_LARGE[operator]
    with pytest.raises(RuntimeError, match=f"{operator}: .* cannot index .*{reason}"):
        launches_of(operator, "sm_90", lambda: forward(make(**cases[reason])))
    assert launches_of(operator, "sm_90", lambda: forward(make()))
