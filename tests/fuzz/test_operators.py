"""Operators called with anything: right results, or an error that says what was wrong."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from ops.bev_cross_attn import problems as bev
from ops.dcnv4 import problems as dcn
from ops.flash_deform_attn import problems as attention

from dcnv4_mm.ops.dcnv4.layout import output_size
from dcnv4_mm.ops.functional import bev_cross_attn, dcnv3, dcnv4, flash_deform_attn, ms_deform_attn

SIZES, SEEDS = st.integers(1, 9), st.integers(0, 2**32 - 1)
WIDTHS = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33, 64])
EXTREME = st.sampled_from([None, 1e30, -1e30, float("inf"), float("nan")])


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def dcnv4_problems(draw):
    settings = dict(
        batch=draw(st.integers(1, 3)),
        size=draw(pairs(3, 9)),
        groups=draw(st.integers(1, 4)),
        width=draw(WIDTHS),
        kernel_size=draw(pairs(1, 4)),
        stride=draw(pairs(1, 3)),
        padding=draw(pairs(0, 3)),
        dilation=draw(pairs(1, 2)),
        offset_scale=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0])),
        spare=draw(st.integers(0, 8)),
        sigma=draw(st.sampled_from([0.5, 2.0, 8.0])),
        whole_offsets=draw(st.booleans()),
        seed=draw(SEEDS),
    )
    settings["remove_center"] = settings["kernel_size"] != (1, 1) and draw(st.booleans())
    names = ("size", "kernel_size", "stride", "padding", "dilation")
    assume(min(output_size(*(settings[name] for name in names))) >= 1)
    problem = dcn.make_problem(**settings)
    if (number := draw(EXTREME)) is not None:
        problem.offset_mask.view(-1, problem.offset_mask.shape[-1])[0, 0] = number
    return problem.to(draw(st.sampled_from(dcn.DTYPES)))


@given(dcnv4_problems(), st.sampled_from([torch.clone, *dcn.LAYOUTS]))
def test_dcnv4(problem, layout):
    """Any geometry, dtype and strides, forward and backward."""

    def run(problem):
        tensors = [
            layout(t).detach().requires_grad_() for t in (problem.value, problem.offset_mask)
        ]
        names = dcn.Problem._fields[3:-1]
        output = dcnv4(*tensors, **{name: getattr(problem, name) for name in names})
        gradients = torch.autograd.grad(output, tensors, problem.grad_output)
        return output.detach(), *(gradient.contiguous() for gradient in gradients)

    exact = dcn.run_reference(problem.to(torch.float64))
    reference = dcn.run_reference(problem)
    for found, same_dtype, expected in zip(run(problem), reference, exact, strict=True):
        # Terms are of size one; a small result is a sum that cancels, and no measure.
        scale = max(1.0, expected.abs().max().item())
        error, usual = ((t.double() - expected).abs().max() / scale for t in (found, same_dtype))
        assert error <= 2 * usual + 4 * dcn.FLOOR[problem.value.dtype]


@st.composite
def attention_problems(draw):
    problem = attention.make_problem(
        packed=draw(st.booleans()),
        batch=draw(st.integers(1, 3)),
        shapes=draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=4)),
        queries=draw(st.integers(1, 20)),
        heads=draw(st.integers(1, 4)),
        points=draw(st.integers(1, 9)),
        width=draw(WIDTHS),
        reach=draw(st.sampled_from([-0.2, 0.2, 2.0])),
        seed=draw(SEEDS),
    )
    if (number := draw(EXTREME)) is not None:
        problem.locations.view(-1)[0] = number
    return problem.to(*draw(st.sampled_from(attention.DTYPES)))


@given(attention_problems(), st.booleans())
def test_attention(problem, strided):
    """Any levels, dtypes and strides, forward and backward."""

    def run(problem):
        value, *points, sizes = (i for i in problem.inputs() if not isinstance(i, int))
        if strided:
            value = value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        tensors = [t.detach().requires_grad_() for t in (value, *points)]
        shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
        if problem.packed:
            count = problem.locations.shape[-2]
            output = flash_deform_attn(tensors[0], shapes, tensors[1], num_points=count)
        else:
            output = ms_deform_attn(tensors[0], shapes, *tensors[1:])
        gradients = torch.autograd.grad(output, tensors, problem.grad_output)
        return output.detach(), *(gradient.contiguous() for gradient in gradients)

    attention.check_against_reference(problem, run)


@st.composite
def bev_problems(draw):
    problem = bev.make_problem(
        batch=draw(st.integers(1, 3)),
        cameras=draw(st.integers(1, 4)),
        shapes=draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3)),
        queries=draw(st.integers(1, 20)),
        heads=draw(st.integers(1, 4)),
        points=draw(st.integers(1, 9)),
        pillar=draw(st.integers(1, 4)),
        width=draw(WIDTHS),
        reach=draw(st.sampled_from([-0.2, 0.2, 2.0])),
        density=draw(st.sampled_from([0.0, 0.2, 1.0])),
        seed=draw(SEEDS),
    )
    if (number := draw(EXTREME)) is not None:
        problem.reference_points.view(-1)[0] = number
    return problem.to(*draw(st.sampled_from(bev.DTYPES)))


@given(bev_problems(), st.booleans())
def test_attention_to_cameras(problem, strided):
    """Any cameras, levels, pillars, dtypes and strides, forward and backward."""

    def run(problem):
        value, points, reference_points, bev_mask, sizes, count = problem.inputs()
        if strided:
            value, points, reference_points, bev_mask = (
                t.mT.contiguous().mT for t in (value, points, reference_points, bev_mask)
            )
        leaves = [t.detach().requires_grad_() for t in (value, points)]
        shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
        output = bev_cross_attn(
            leaves[0], shapes, leaves[1], reference_points, bev_mask, num_points=count
        )
        gradients = torch.autograd.grad(output, leaves, problem.grad_output)
        return output.detach(), *(gradient.contiguous() for gradient in gradients)

    bev.check_against_reference(problem, run)


def tensor(*shape, **options):
    return torch.zeros(shape, **options)


WRONG_TENSORS = st.sampled_from(
    [
        None,
        1.0,
        [[1.0]],
        "tensor",
        np.zeros((2, 6, 7, 32), np.float32),
        tensor(),
        tensor(0),
        tensor(2, 6, 7),
        tensor(2, 6, 7, 32, 1),
        tensor(2, 0, 7, 32),
        tensor(2, 6, 7, 0),
        tensor(3, 6, 7, 32),
        tensor(2, 7, 6, 32),
        tensor(2, 6, 7, 32, dtype=torch.int64),
        tensor(2, 6, 7, 32, dtype=torch.bool),
        tensor(2, 6, 7, 32, dtype=torch.complex64),
        tensor(2, 6, 7, 32, dtype=torch.float8_e4m3fn),
        tensor(2, 6, 7, 32, dtype=torch.float64),
        tensor(2, 6, 7, 32, device="meta"),
        tensor(2, 6, 7, 32).to_sparse(),
    ]
)
WRONG_COUNTS = st.sampled_from([0, -1, 5, 2**31, 2**63, 10**30, 1.5, "2", None, (2,), float("nan")])
WRONG_PAIRS = st.sampled_from(
    [
        *(0, -1, 2**62, 10**30, 1.5, "33", None),
        *((), (3,), (3, 3, 3), (3, -1), (3, 1.5), {3: 3}, (None, 3)),
    ]
)
WRONG_SHAPES = st.sampled_from(
    [
        *(None, 5, "67", [], [(6, 7)], [(6, 7), (3, 5)], [(6, 7), (3,)], [(6, 7), (3, 4, 1)]),
        *([(6, 7), (-3, -4)], [(54, 1), (0, 4)], [(6.0, 7.0), (3.0, 4.0)], [(2**62, 4), (3, 4)]),
        *(tensor(2, 2), tensor(2, 3, dtype=torch.int64), tensor(4, dtype=torch.int64)),
    ]
)
WRONG = {
    "groups": WRONG_COUNTS,
    "num_points": WRONG_COUNTS,
    "spatial_shapes": WRONG_SHAPES,
    "kernel_size": WRONG_PAIRS,
    "stride": WRONG_PAIRS,
    "dilation": WRONG_PAIRS,
    "padding": st.sampled_from([-1, 2**62, 10**30, 0.5, "1", None, (1, -1)]),
    "offset_scale": st.sampled_from([float("nan"), float("inf"), "1", None, 1j]),
    "precision": st.sampled_from(["", "FAST", None, 1, True]),
    "remove_center": st.sampled_from([None, "yes", 2, tensor(3)]),
}
GEOMETRY = ("kernel_size", "stride", "dilation", "padding", "offset_scale", "remove_center")
LEVELS = dict(spatial_shapes=[(6, 7), (3, 4)])
VALUE = tensor(2, 54, 2, 16)
# Operator, right arguments, and names of those that have a default.
CALLS = {
    "dcnv4": (
        dcnv4,
        dict(value=tensor(2, 6, 7, 32), offset_mask=tensor(2, 6, 7, 56), groups=2),
        (*GEOMETRY, "precision"),
    ),
    "dcnv3": (
        dcnv3,
        dict(
            value=tensor(2, 6, 7, 32),
            offset=tensor(2, 6, 7, 36),
            mask=tensor(2, 6, 7, 18),
            groups=2,
        ),
        GEOMETRY,
    ),
    "flash_deform_attn": (
        flash_deform_attn,
        dict(value=VALUE, locations_logits=tensor(2, 9, 2, 24), num_points=4, **LEVELS),
        (),
    ),
    "ms_deform_attn": (
        ms_deform_attn,
        dict(
            value=VALUE,
            sampling_locations=tensor(2, 9, 2, 2, 4, 2),
            attention_weights=tensor(2, 9, 2, 2, 4),
            **LEVELS,
        ),
        (),
    ),
    "bev_cross_attn": (
        bev_cross_attn,
        dict(
            value=tensor(2, 3, 54, 2, 16),
            offsets_logits=tensor(2, 9, 2, 24),
            reference_points=tensor(2, 3, 9, 4, 2),
            bev_mask=tensor(2, 3, 9, dtype=torch.bool),
            num_points=4,
            **LEVELS,
        ),
        (),
    ),
}


@pytest.mark.parametrize("operator", CALLS)
@given(st.data())
def test_wrong_arguments(operator, data):
    function, arguments, others = CALLS[operator]
    name = data.draw(st.sampled_from([*arguments, *others]))
    argument = data.draw(WRONG.get(name, WRONG_TENSORS))
    with pytest.raises((TypeError, ValueError)):
        function(**{**arguments, name: argument})
