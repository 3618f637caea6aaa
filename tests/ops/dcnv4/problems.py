"""Problems for the kernels of DCNv4, on any device, and what their results are measured by."""

import math
import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from helpers import load_arrays, load_json, normal

from dcnv4_mm.ops.dcnv4.layout import num_points, offset_rows, output_size
from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# A kernel may err twice as much as the reference in the same dtype, plus this, relative to the
# largest number of the result. float64: 4 times what 1000 random problems showed (the reference's
# own error is unknown there). The others: rounding the result, half a unit in its last place.
FLOOR = {
    torch.float64: 4e-15,
    torch.float32: 6e-8,
    torch.float16: 4.9e-4,
    torch.bfloat16: 3.9e-3,
}


class Problem(NamedTuple):
    """Arguments of the raw operators; lists are (rows, columns)."""

    grad_output: torch.Tensor
    value: torch.Tensor
    offset_mask: torch.Tensor
    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    offset_scale: float
    remove_center: bool
    fast: bool = False

    def to(self, dtype):
        tensors = {name: getattr(self, name).to(dtype) for name in Problem._fields[:3]}
        return self._replace(**tensors)

    def on(self, device):
        return Problem(*(tensor.to(device) for tensor in self[:3]), *self[3:])

    @property
    def name(self):
        return "dcnv4"

    def inputs(self):
        """Arguments of the raw forward."""
        return self[1:]


def make_problem(
    *,
    batch=2,
    size=(6, 7),
    groups=2,
    width=16,
    kernel_size=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    offset_scale=1.0,
    remove_center=False,
    spare=5,
    sigma=2.0,
    whole_offsets=False,
    dtype=torch.float64,
    seed=0,
):
    """Normal numbers; offsets with a deviation of ``sigma`` pixels; NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)
    out = output_size(size, kernel_size, stride, padding, dilation)
    points = num_points(kernel_size, remove_center)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = normal(batch, *out, groups, 2 * points) * sigma
    rows = torch.cat(
        [offsets.round() if whole_offsets else offsets, normal(batch, *out, groups, points)], -1
    )
    padded = torch.nn.functional.pad(rows.flatten(-2), (0, spare), value=math.nan)
    return Problem(
        normal(batch, *out, groups * width),
        normal(batch, *size, groups * width),
        padded,
        list(kernel_size),
        list(stride),
        list(padding),
        list(dilation),
        groups,
        offset_scale,
        remove_center,
    ).to(dtype)


def random_problem(seed):
    """A problem of random shape, with extreme offsets now and then."""
    choose = random.Random(seed)
    while True:
        kernel_size = choose.choice(
            [(3, 3), (3, 3), (1, 1), (1, 5), (4, 2), (5, 5), (7, 3), (13, 13)]
        )
        settings = dict(
            batch=choose.choice([1, 1, 2, 3]),
            size=(choose.randint(1, 14), choose.randint(1, 14)),
            groups=choose.choice([1, 2, 3, 8]),
            width=choose.choice([1, 3, 8, 16, 17, 31, 32, 64, 100, 150]),
            kernel_size=kernel_size,
            stride=(choose.randint(1, 3), choose.randint(1, 3)),
            padding=(choose.randint(0, 5), choose.randint(0, 5)),
            dilation=(choose.randint(1, 2), choose.randint(1, 2)),
            offset_scale=choose.choice([1.0, 2.0, 0.5]),
            remove_center=kernel_size != (1, 1) and choose.random() < 0.3,
            spare=choose.choice([0, 1, 5, 8]),
            sigma=choose.choice([0.5, 2.0, 8.0]),
            whole_offsets=choose.random() < 0.3,
        )
        geometry = (
            settings[name] for name in ("size", "kernel_size", "stride", "padding", "dilation")
        )
        if min(output_size(*geometry)) >= 1:
            break
    problem = make_problem(**settings, seed=seed)
    if choose.random() < 0.3:
        offsets = problem.offset_mask.view(-1, problem.offset_mask.shape[-1])
        offsets[choose.randrange(len(offsets)), 0] = choose.choice(
            [1e30, -1e30, -1.0, math.inf, math.nan]
        )
    return problem.to(choose.choice(DTYPES))


def run_reference(problem):
    """Output, gradient of value, gradient of offset_mask."""
    return dcnv4_forward_reference(*problem[1:]), *dcnv4_backward_reference(*problem)


def relative_error(actual, expected):
    scale = expected.abs().max().item() or 1.0
    return (actual.double() - expected).abs().max().item() / scale


class Expected(NamedTuple):
    """A problem with what its results are compared with, for several kernels."""

    problem: Problem
    exact: tuple[torch.Tensor, ...]
    usual: tuple[torch.Tensor, ...]  # by the reference in the problem's dtype


def expect(problem):
    return Expected(problem, run_reference(problem.to(torch.float64)), run_reference(problem))


@cache
def random_case(seed):
    return expect(random_problem(seed))


def check_against_reference(case, *runs):
    """Compares each ``run(problem)`` with float64; ``run`` returns what ``run_reference`` does."""
    problem, exact, usual = case if isinstance(case, Expected) else expect(case)
    for run in runs:
        check_results(problem, run(problem), exact, usual)


def check_results(problem, results, exact, usual):
    dtype = problem.value.dtype
    used = 3 * problem.groups * num_points(problem.kernel_size, problem.remove_center)
    for name, kernel, same_dtype, expected in zip(
        ("output", "grad_value", "grad_offset_mask"), results, usual, exact, strict=True
    ):
        assert kernel.dtype == dtype
        assert kernel.shape == expected.shape
        assert kernel.is_contiguous()
        budget = 2 * relative_error(same_dtype, expected) + FLOOR[dtype]
        assert relative_error(kernel, expected) <= budget, name
    assert not kernel[..., used:].any()


def in_channel_slice(tensor):
    return torch.cat([tensor] * 4, dim=-1)[..., 3 : 3 + tensor.shape[-1]].copy_(tensor)


def in_wider_rows(tensor):
    return torch.cat([tensor, tensor], dim=2)[:, :, : tensor.shape[2]]


def channels_first(tensor):
    return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def columns_before_rows(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def every_second_image(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


LAYOUTS = [in_channel_slice, in_wider_rows, channels_first, columns_before_rows, every_second_image]

GOLDEN_RESULTS = ("output", "grad_input", "grad_offset_mask")
GOLDEN_CASES = {case["name"]: case for case in load_json("dcnv4_cases")}


def golden_inputs(case):
    """Value, offset_mask and gradient of the output of a recorded case, float64."""
    name, batch, channels = case["name"], case["N"], case["G"] * case["C"]
    output_size = case["H_out"], case["W_out"]
    value = normal(f"{name}.input", (batch, case["H"], case["W"], channels))
    shape = (batch, *output_size, case["offset_mask_channels"])
    offset_mask = normal(f"{name}.offset_mask", shape) * case["om_scale"]
    rows = offset_rows(case["G"], case["K"]).numpy()
    if case["offsets"] == "zero":
        offset_mask[..., rows] = 0
    elif case["offsets"] == "round":
        offset_mask[..., rows] = np.round(offset_mask[..., rows])
    grad_output = normal(f"{name}.grad_output", (batch, *output_size, channels))
    return [torch.from_numpy(array) for array in (value, offset_mask, grad_output)]


def golden_geometry(case):
    """Arguments of the public function for a recorded case."""
    return {
        "kernel_size": (case["kh"], case["kw"]),
        "stride": (case["sh"], case["sw"]),
        "padding": (case["ph"], case["pw"]),
        "dilation": (case["dh"], case["dw"]),
        "groups": case["G"],
        "offset_scale": case["osc"],
        "remove_center": bool(case["rc"]),
    }


def golden_problem(case):
    """A recorded case as arguments of the raw operators, float64."""
    value, offset_mask, grad_output = golden_inputs(case)
    lists = [list(v) if isinstance(v, tuple) else v for v in golden_geometry(case).values()]
    return Problem(grad_output, value, offset_mask, *lists)


def check_golden(case, results):
    """Compares output and gradients with the recorded ones; float64 or float32.

    float32 may have twice the error that the original formula has in it, plus a floor.
    """
    errors, sizes = case["float32_max_abs_error"], case["max_abs"]
    for key, result, error, largest in zip(GOLDEN_RESULTS, results, errors, sizes, strict=True):
        expected = torch.from_numpy(load_arrays("dcnv4_cases")[f"{case['name']}/{key}"])
        double = result.dtype == torch.float64
        atol = 1e-12 * largest if double else 2 * error + 1e-6 * largest
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol, msg=key)
