"""Problems for the kernels of BEV cross-attention, and what their results must be."""

import math
import random
from functools import cache
from typing import NamedTuple

import torch
from ops.flash_deform_attn.problems import DTYPES, FLOOR, IDS

from dcnv4_mm.ops.bev_cross_attn.reference import (
    bev_cross_attn_backward_reference,
    bev_cross_attn_forward_reference,
)
from dcnv4_mm.ops.flash_deform_attn.layout import num_pixels, pack, read_spatial_shapes, unpack

__all__ = ["DTYPES", "IDS"]


class Problem(NamedTuple):
    """Arguments of the raw operators."""

    grad_output: torch.Tensor
    value: torch.Tensor
    offsets_logits: torch.Tensor
    reference_points: torch.Tensor
    bev_mask: torch.Tensor
    level_sizes: list[int]
    num_points: int

    def to(self, dtype, points_dtype):
        # The type of the arithmetic; a float32 problem is the same one in float64.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return self._replace(
            grad_output=self.grad_output.to(dtype),
            value=self.value.to(dtype),
            offsets_logits=self.offsets_logits.to(points_dtype),
            reference_points=self.reference_points.to(wide),
        )

    def on(self, device):
        tensors = {k: v.to(device) for k, v in self._asdict().items() if torch.is_tensor(v)}
        return self._replace(**tensors)

    @property
    def name(self):
        return "bev_cross_attn"

    def inputs(self):
        """Arguments of the raw forward."""
        return self[1:]

    def points(self):
        """Offsets (B, Q, G, L, P, 2) and logits (B, Q, G, L, P), views."""
        return unpack(self.offsets_logits, len(self.level_sizes) // 2, self.num_points)


def make_problem(
    *,
    batch=2,
    cameras=3,
    shapes=((6, 7), (3, 4)),
    queries=9,
    heads=2,
    points=4,
    pillar=2,
    width=16,
    reach=0.2,
    density=0.5,
    dtypes=DTYPES[0],
    seed=0,
):
    """Normal values, offsets of some pixels, and pillars that leave the images by ``reach``."""
    random_numbers = torch.Generator().manual_seed(seed)
    options = dict(generator=random_numbers, dtype=torch.float64)
    sizes = read_spatial_shapes(shapes)
    shape = (batch, queries, heads, len(shapes), points)
    reference_points = (
        torch.rand(batch, cameras, queries, pillar, 2, **options) * (1 + 2 * reach) - reach
    )
    return Problem(
        torch.randn(batch, queries, heads * width, **options),
        torch.randn(batch, cameras, num_pixels(sizes), heads, width, **options),
        pack(1.5 * torch.randn(*shape, 2, **options), torch.randn(shape, **options)),
        reference_points.float(),
        torch.rand(batch, cameras, queries, **options) < density,
        sizes,
        points,
    ).to(*dtypes)


def random_problem(seed):
    """A problem of random shape, with extreme positions now and then."""
    choose = random.Random(seed)
    levels = choose.choice([1, 1, 2, 3])
    problem = make_problem(
        batch=choose.choice([1, 1, 2, 3]),
        cameras=choose.choice([1, 2, 3, 5]),
        shapes=[(choose.randint(1, 14), choose.randint(1, 14)) for _ in range(levels)],
        queries=choose.randint(1, 40),
        heads=choose.choice([1, 2, 3, 8]),
        points=choose.choice([1, 2, 3, 4, 9]),
        pillar=choose.choice([1, 2, 3, 4]),
        width=choose.choice([1, 3, 8, 16, 17, 31, 32, 64, 100]),
        reach=choose.choice([-0.2, 0.2, 2.0]),
        density=choose.choice([0.0, 0.2, 0.6, 1.0]),
        seed=seed,
    )
    if choose.random() < 0.3:
        # Multiples of a quarter: many points exactly on borders and pixels.
        problem = problem._replace(
            reference_points=(4 * problem.reference_points).round() / 4,
            offsets_logits=(4 * problem.offsets_logits).round() / 4,
        )
    if choose.random() < 0.3:
        position = choose.randrange(problem.reference_points.numel())
        extremes = [1e30, -1e30, math.inf, math.nan]
        problem.reference_points.view(-1)[position] = choose.choice(extremes)
    return problem.to(*choose.choice(DTYPES))


def run_reference(problem):
    gradients = bev_cross_attn_backward_reference(*problem, False, True, True)
    return bev_cross_attn_forward_reference(*problem.inputs()), *gradients


def split_logits(results):
    """The gradients of offsets and logits apart: those of the offsets are much larger."""
    *others, points = results
    offsets = points.shape[-1] // 3 * 2
    return *others, points[..., :offsets], points[..., offsets:]


def scales(problem, exact):
    """The numbers that errors are relative to: the largest ones of each result."""
    largest = [result.abs().max().item() or 1.0 for result in exact]
    # A gradient of a logit is a difference of gradients of shares, and may be much smaller: these
    # are at most the products of pixels and gradients of the output.
    channels = problem.value.shape[-1]
    bound = problem.value.abs().max() * problem.grad_output.abs().max() * math.sqrt(channels)
    largest[3] = max(largest[3], bound.item())
    return largest


def rounding_of_sums(problem):
    """What chains of additions may cost, relative to the largest result.

    They grow with the square root of their length: over all corners of all points of all cameras
    for an output, over all queries for a pixel. A point at a border adds each of its corners in two
    parts, so up to four parts to one pixel.
    """
    sizes = zip(problem.level_sizes[::2], problem.level_sizes[1::2], strict=True)
    pixels = min(height * width for height, width in sizes)
    queries, cameras = problem.offsets_logits.shape[1], problem.value.shape[1]
    points = len(problem.level_sizes) // 2 * problem.num_points
    unit = 1.2e-16 if problem.value.dtype == torch.float64 else 6e-8
    return {
        "output": unit * math.sqrt(4 * cameras * points),
        "grad_value": unit * math.sqrt(4 * queries * problem.num_points / pixels),
    }


class Expected(NamedTuple):
    """A problem with what its results are compared with, for several kernels."""

    problem: Problem
    exact: tuple[torch.Tensor, ...]
    usual: tuple[torch.Tensor, ...]  # by the reference in the problem's dtypes
    scales: list[float]


def expect(problem):
    exact_problem = problem.to(*DTYPES[0])
    exact = split_logits(run_reference(exact_problem))
    usual = split_logits(run_reference(problem))
    return Expected(problem, exact, usual, scales(exact_problem, exact))


@cache
def random_case(seed):
    return expect(random_problem(seed))


def check_against_reference(case, *runs):
    """A kernel may err twice as much as the reference in the same dtype, plus a floor."""
    case = case if isinstance(case, Expected) else expect(case)
    for run in runs:
        check_results(case, run(case.problem))


def check_results(case, results):
    problem = case.problem
    value_dtype, points_dtype = problem.value.dtype, problem.offsets_logits.dtype
    sums = rounding_of_sums(problem)
    assert all(result.is_contiguous() for result in results)
    for name, dtype, kernel, same_dtype, expected, scale in zip(
        ("output", "grad_value", "grad_offsets", "grad_logits"),
        (value_dtype, value_dtype, points_dtype, points_dtype),
        split_logits(results),
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
