"""The compiled CPU kernels against the float64 reference, for every instruction set."""

import ctypes
import math
import mmap
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT

from dcnv4_mm.ops.flash_deform_attn.layout import pack, read_spatial_shapes
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_backward_reference,
    flash_deform_attn_forward_reference,
    ms_deform_attn_backward_reference,
    ms_deform_attn_forward_reference,
)
from dcnv4_mm.ops.functional import backend_info

# Types of value and of the points.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]
IDS = [f"{value}-{points}".replace("torch.", "") for value, points in DTYPES]

# A kernel may err twice as much as the reference in the same dtype, plus this, relative to the
# largest number of the result. 500 random problems for each instruction set needed 1.2e-15 in
# float64, where the reference's own error is unknown, and 1.2e-7 in float32, where it is lucky now
# and then with few numbers. 16 bits: rounding the result, half a unit in its last place.
FLOOR = {
    torch.float64: 5e-15,
    torch.float32: 2.4e-7,
    torch.float16: 4.9e-4,
    torch.bfloat16: 3.9e-3,
}

INSTRUCTION_SETS = ("default", "avx2", "avx512")


class Problem(NamedTuple):
    """Arguments of the raw operators; ``packed`` says which of the two."""

    packed: bool
    grad_output: torch.Tensor
    value: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    level_sizes: list[int]

    def to(self, dtype, points_dtype):
        return self._replace(
            grad_output=self.grad_output.to(dtype),
            value=self.value.to(dtype),
            locations=self.locations.to(points_dtype),
            weights=self.weights.to(points_dtype),
        )

    @property
    def name(self):
        return "flash_deform_attn" if self.packed else "ms_deform_attn"

    def inputs(self):
        """Tensors and geometry of the raw forward."""
        if self.packed:
            points = pack(self.locations, self.weights)
            return self.value, points, self.level_sizes, self.weights.shape[-1]
        return self.value, self.locations, self.weights, self.level_sizes


def make_problem(
    *,
    packed=False,
    batch=2,
    shapes=((6, 7), (3, 4)),
    queries=9,
    heads=2,
    points=4,
    width=16,
    reach=0.2,
    dtypes=DTYPES[0],
    seed=0,
):
    """Normal numbers, and locations that go beyond the levels' borders by ``reach``."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, dtype=torch.float64)
    sizes = read_spatial_shapes(shapes)
    pixels = sum(height * columns for height, columns in shapes)
    shape = (batch, queries, heads, len(shapes), points)
    return Problem(
        packed,
        torch.randn(batch, queries, heads * width, **options),
        torch.randn(batch, pixels, heads, width, **options),
        torch.rand(*shape, 2, **options) * (1 + 2 * reach) - reach,
        torch.randn(shape, **options),
        sizes,
    ).to(*dtypes)


def random_problem(seed):
    """A problem of random shape, with extreme locations now and then."""
    choose = random.Random(seed)
    levels = choose.choice([1, 1, 2, 3, 4, 5])
    problem = make_problem(
        packed=choose.random() < 0.5,
        batch=choose.choice([1, 1, 2, 3]),
        shapes=[(choose.randint(1, 14), choose.randint(1, 14)) for _ in range(levels)],
        queries=choose.randint(1, 40),
        heads=choose.choice([1, 2, 3, 8]),
        points=choose.choice([1, 2, 3, 4, 4, 8, 13]),
        width=choose.choice([1, 3, 8, 16, 17, 31, 32, 64, 100, 150]),
        reach=choose.choice([-0.2, 0.2, 2.0]),
        seed=seed,
    )
    if choose.random() < 0.3:
        # Multiples of a quarter: many points exactly on borders and pixels.
        problem = problem._replace(locations=(4 * problem.locations).round() / 4)
    if choose.random() < 0.3:
        problem.locations.view(-1)[choose.randrange(problem.locations.numel())] = choose.choice(
            [1e30, -1e30, math.inf, math.nan]
        )
    return problem.to(*choose.choice(DTYPES))


def run(problem, forward, backward):
    """Output, then the gradients of value and points."""
    flags = False, True, True
    inputs = problem.inputs()
    return forward(*inputs), *backward(problem.grad_output, *inputs, *flags)


def run_kernels(problem):
    operators = torch.ops.dcnv4_mm
    return run(
        problem,
        getattr(operators, f"{problem.name}_forward"),
        getattr(operators, f"{problem.name}_backward"),
    )


def run_reference(problem):
    if problem.packed:
        functions = flash_deform_attn_forward_reference, flash_deform_attn_backward_reference
    else:
        functions = ms_deform_attn_forward_reference, ms_deform_attn_backward_reference
    return run(problem, *functions)


def split_logits(results, problem):
    """The gradients of locations and logits apart: those of the locations are much larger."""
    if not problem.packed:
        return results
    *others, points = results
    locations = points.shape[-1] // 3 * 2
    return *others, points[..., :locations], points[..., locations:]


def scales(problem, exact):
    """The numbers that errors are relative to: the largest ones of each result."""
    largest = [result.abs().max().item() or 1.0 for result in exact]
    if problem.packed:
        # A gradient of a logit is a difference of gradients of shares, and may be much smaller.
        sizes = problem.level_sizes
        shares = problem.weights.flatten(-2).softmax(-1).view_as(problem.weights)
        tensors = problem.grad_output, problem.value, problem.locations, shares
        grad_shares = ms_deform_attn_backward_reference(*tensors, sizes)[2]
        largest[3] = grad_shares.abs().max().item() or 1.0
    return largest


def rounding_of_sums(problem):
    """What the additions to a pixel of grad_value may cost, relative to the largest result.

    They grow with the square root of their number. A point at a border adds each of its corners
    in two parts, so up to four parts to one pixel.
    """
    pixels = min(
        map(math.prod, zip(problem.level_sizes[::2], problem.level_sizes[1::2], strict=True))
    )
    _, queries, _, _, points = problem.weights.shape
    unit = 1.2e-16 if problem.value.dtype == torch.float64 else 6e-8
    return unit * math.sqrt(4 * queries * points / pixels)


def check_against_reference(problem):
    value_dtype, points_dtype = problem.value.dtype, problem.weights.dtype
    exact_problem = problem.to(*DTYPES[0])
    kernels = run_kernels(problem)
    assert all(result.is_contiguous() for result in kernels)
    exact = split_logits(run_reference(exact_problem), problem)
    results = zip(
        ("output", "grad_value", "grad_locations", "grad_weights"),
        (value_dtype, value_dtype, points_dtype, points_dtype),
        split_logits(kernels, problem),
        split_logits(run_reference(problem), problem),
        exact,
        scales(exact_problem, exact),
        strict=True,
    )
    for name, dtype, kernel, same_dtype, expected, scale in results:
        assert kernel.dtype == dtype
        assert kernel.shape == expected.shape
        error, usual = (
            (result.double() - expected).abs().max().item() / scale
            for result in (kernel, same_dtype)
        )
        budget = 2 * usual + FLOOR[dtype]
        if name == "grad_value":
            budget += rounding_of_sums(problem)
        assert error <= budget, name


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
    asked = subprocess.run([sys.executable, "-P", "-c", ask], **options)
    if asked.returncode:
        assert "this machine does not support it" in asked.stderr
        return
    assert asked.stdout.strip() == instruction_set
    arguments = ["-q", "-x", "-k", "not instruction_set", "-p", "no:cacheprovider"]
    tests = subprocess.run([sys.executable, "-P", "-m", "pytest", __file__, *arguments], **options)
    assert tests.returncode == 0, tests.stdout
