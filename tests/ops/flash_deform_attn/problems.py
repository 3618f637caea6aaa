"""Problems for the kernels of deformable attention, and what their results must be."""

import math
import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from helpers import generator, load_arrays, load_json, normal

from dcnv4_mm.ops.flash_deform_attn.layout import pack, read_spatial_shapes, unpack
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_backward_reference,
    flash_deform_attn_forward_reference,
    ms_deform_attn_backward_reference,
    ms_deform_attn_forward_reference,
)

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

GOLDEN_CASES = {case["name"]: case for case in load_json("flash_deform_attn_cases")}
GOLDEN_RESULTS = ("output", "grad_value", "grad_sampling_loc_attn")


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

    def on(self, device):
        names = ("grad_output", "value", "locations", "weights")
        return self._replace(**{name: getattr(self, name).to(device) for name in names})

    @property
    def name(self):
        return "flash_deform_attn" if self.packed else "ms_deform_attn"

    def inputs(self):
        """Arguments of the raw forward."""
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
    random_numbers = torch.Generator().manual_seed(seed)
    options = dict(generator=random_numbers, dtype=torch.float64)
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


def run_reference(problem):
    if problem.packed:
        forward, backward = (
            flash_deform_attn_forward_reference,
            flash_deform_attn_backward_reference,
        )
    else:
        forward, backward = ms_deform_attn_forward_reference, ms_deform_attn_backward_reference
    inputs = problem.inputs()
    return forward(*inputs), *backward(problem.grad_output, *inputs, False, True, True)


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


def rounding_of_one_sum(problem):
    """What a chain of additions of all corners costs, likewise, where a kernel has no parts."""
    levels, points = problem.weights.shape[3:]
    unit = 1.2e-16 if problem.value.dtype == torch.float64 else 6e-8
    return unit * math.sqrt(4 * levels * points)


class Expected(NamedTuple):
    """A problem with what its results are compared with, for several kernels."""

    problem: Problem
    exact: tuple[torch.Tensor, ...]
    usual: tuple[torch.Tensor, ...]  # by the reference in the problem's dtypes
    scales: list[float]


def expect(problem):
    exact_problem = problem.to(*DTYPES[0])
    exact = split_logits(run_reference(exact_problem), problem)
    usual = split_logits(run_reference(problem), problem)
    return Expected(problem, exact, usual, scales(exact_problem, exact))


@cache
def random_case(seed):
    return expect(random_problem(seed))


def check_against_reference(case, *runs, one_sum=False):
    """Checks the results of ``run(problem)``; ``one_sum`` allows for a long sum's roundings."""
    case = case if isinstance(case, Expected) else expect(case)
    for run in runs:
        check_results(case, run(case.problem), one_sum)


def check_results(case, results, one_sum):
    problem = case.problem
    value_dtype, points_dtype = problem.value.dtype, problem.weights.dtype
    assert all(result.is_contiguous() for result in results)
    sums = {"grad_value": rounding_of_sums(problem)}
    if one_sum:
        sums["output"] = rounding_of_one_sum(problem)
    for name, dtype, kernel, same_dtype, expected, scale in zip(
        ("output", "grad_value", "grad_locations", "grad_weights"),
        (value_dtype, value_dtype, points_dtype, points_dtype),
        split_logits(results, problem),
        case.usual,
        case.exact,
        case.scales,
        strict=True,
    ):
        assert kernel.dtype == dtype
        assert kernel.shape == expected.shape
        error, usual = (
            (result.double() - expected).abs().max().item() / scale
            for result in (kernel, same_dtype)
        )
        assert error <= 2 * usual + FLOOR[dtype] + sums.get(name, 0.0), name


def golden_problem(case, dtype):
    value, points, grad_output = (tensor.to(dtype) for tensor in golden_inputs(case))
    locations, logits = unpack(points, len(case["shapes"]), case["P"])
    return Problem(True, grad_output, value, locations, logits, read_spatial_shapes(case["shapes"]))


def golden_inputs(case):
    """Value, locations_logits and gradient of the output of a recorded case, float64."""
    name, batch, heads, channels = (case[key] for key in ("name", "N", "G", "C"))
    shape = (batch, case["Q"], heads, len(case["shapes"]), case["P"])
    pixels = sum(height * width for height, width in case["shapes"])
    locations = generator(f"{name}.locations").random((*shape, 2))
    locations = case["lo"] + (case["hi"] - case["lo"]) * locations
    if case["edge"]:
        locations = np.round(4 * locations) / 4
    logits = normal(f"{name}.logits", shape)
    return [
        torch.from_numpy(normal(f"{name}.value", (batch, pixels, heads, channels))),
        pack(torch.from_numpy(locations), torch.from_numpy(logits)),
        torch.from_numpy(normal(f"{name}.grad_output", (batch, case["Q"], heads * channels))),
    ]


def check_golden(case, results, dtype):
    """float64: exact but for roundings. float32: at most twice the error that the original formula
    has in float32, plus a floor.
    """
    budgets = zip(
        GOLDEN_RESULTS, results, case["float32_max_abs_error"], case["max_abs"], strict=True
    )
    for key, result, error, largest in budgets:
        expected = torch.from_numpy(load_arrays("flash_deform_attn_cases")[f"{case['name']}/{key}"])
        if dtype == torch.float64:
            atol = 1e-12 * expected.abs().max().item()
        else:
            atol = 2 * error + 1e-6 * largest
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol, msg=key)
