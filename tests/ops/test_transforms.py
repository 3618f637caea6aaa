"""Derivatives under every transform of torch, compared with a formula of torch's own operators."""

import math
from functools import partial

import pytest
import torch
from ops.bev_cross_attn import problems as bev_cross_attn_problems
from ops.dcnv4 import problems as dcnv4_problems
from ops.flash_deform_attn import problems as flash_deform_attn_problems
from ops.transforms import (
    CASES,
    TRANSFORMS,
    all_tensors,
    assert_same,
    batched_gradients,
    bev_case,
    dual_numbers,
    ensemble,
    grad,
    gradient_penalty,
    jvp,
    loss_of,
    nested_vmap,
    per_sample_gradients,
    reverse_over_reverse,
    third_derivative,
)
from torch import func

from dcnv4_mm.ops.bev_cross_attn.registration import bev_cross_attn_raw
from dcnv4_mm.ops.dcnv4.registration import dcnv4_raw
from dcnv4_mm.ops.flash_deform_attn.registration import RAW_OPERATORS
from dcnv4_mm.ops.functional import bev_cross_attn, dcnv4


@pytest.fixture(params=CASES)
def case(request, device):
    return CASES[request.param](device, one_point=False)


@pytest.fixture(params=CASES)
def one_point(request, device):
    return CASES[request.param](device, one_point=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def compiler():
    """Compiles anew: torch gives up on code that it has compiled often."""
    torch._dynamo.reset()
    yield partial(torch.compile, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
def test_equals_the_plain_formula(case, transform):
    assert_same(transform(case.ours, case), transform(case.plain, case))


def test_gradcheck_of_every_mode(case):
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    torch.autograd.gradcheck(
        case.ours, tensors, fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )
    torch.autograd.gradgradcheck(
        case.ours, tensors, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize(
    "transform",
    [per_sample_gradients, nested_vmap, reverse_over_reverse, jvp],
    ids=lambda transform: transform.__name__,
)
def test_compiled_transform(one_point, transform, compiler):
    compiled = compiler(
        lambda *tensors: transform(one_point.ours, one_point._replace(tensors=tensors)),
        fullgraph=True,
    )
    assert_same(compiled(*one_point.tensors), transform(one_point.plain, one_point))


def test_transforms_of_a_compiled_function(case, compiler):
    function = compiler(case.ours)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient_penalty(function, case)
    # The graph is there already when it is called within a transform.
    for transform in (grad, per_sample_gradients, batched_gradients, ensemble, jvp, dual_numbers):
        assert_same(transform(function, case), transform(case.plain, case))


def test_forward_mode_of_a_whole_compiled_graph_is_refused(case, compiler):
    function = compiler(case.ours, fullgraph=True)
    function(*case.tensors)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        dual_numbers(function, case)


@pytest.mark.parametrize("kind", ["export", "trace"])
def test_transforms_of_an_exported_function(case, kind):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.ours(*tensors)

    tensors = tuple(tensor.clone().requires_grad_() for tensor in case.tensors)
    if kind == "export":
        function = torch.export.export(Module(), tensors).module()
    else:
        function = torch.jit.trace(Module(), tensors)
    transforms = [grad, batched_gradients, ensemble, jvp, dual_numbers]
    transforms += [gradient_penalty, third_derivative]
    if kind == "trace":
        # An exported program has the batch size of its example.
        transforms.append(per_sample_gradients)
    for transform in transforms:
        assert_same(transform(function, case), transform(case.plain, case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(case, dtype):
    case = case._replace(tensors=[tensor.to(dtype).double() for tensor in case.tensors])
    lower = case._replace(tensors=[tensor.to(dtype) for tensor in case.tensors])

    def run(case):
        tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
        gradients = torch.autograd.grad(case.ours(*tensors).sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in gradients), tensors)
        tangents = torch.func.jvp(case.ours, tuple(case.tensors), tuple(case.tensors))
        return *gradients, *second, *tangents

    for actual, expected in zip(run(lower), run(case), strict=True):
        assert actual.dtype == dtype
        # Two roundings to the storage type, of numbers up to the largest.
        atol = 4 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)


def test_vmap_over_no_entries(one_point):
    none = [tensor[:0, None] for tensor in one_point.tensors]
    gradients = func.vmap(func.grad(loss_of(one_point.ours), all_tensors(one_point)))(*none)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in none]


def test_values_that_torch_has_not_computed_yet(one_point):
    """Tensors with a pending negation, and gradients known to be zero."""
    value, *points = one_point.tensors
    negative = torch.complex(value, -value).conj().imag
    assert negative.is_neg()
    assert_same(one_point.ours(negative, *points), one_point.plain(value, *points))
    tensors = [tensor.clone().requires_grad_() for tensor in one_point.tensors]
    output = one_point.ours(*tensors)
    zeros = torch._efficientzerotensor(output.shape, dtype=output.dtype, device=output.device)
    for gradient in torch.autograd.grad(output, tensors, zeros, create_graph=True):
        assert not gradient.any()


def test_functionalize_is_refused_by_torch(one_point):
    with pytest.raises(RuntimeError, match="Functionalize"):
        func.functionalize(one_point.ours)(*one_point.tensors)


def test_a_gradient_that_does_not_exist_is_refused():
    case = bev_case("cpu", one_point=True)
    value, rows = case.tensors
    reference_points = torch.rand(2, 1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    bev_mask = torch.ones(2, 1, 2, dtype=torch.bool)
    # Within vmap a tensor does not say that it requires a gradient.
    outputs = func.vmap(
        lambda reference_points: bev_cross_attn(
            value, [(2, 3)], rows, reference_points, bev_mask, num_points=1
        )
    )(reference_points[None])
    with pytest.raises(NotImplementedError, match="detach"):
        outputs.sum().backward()


def test_shapes_are_checked_in_every_mode():
    value, rows = torch.randn(1, 4, 5, 8), torch.randn(1, 4, 4, 27)

    def run(value):
        return dcnv4(value, rows, groups=1)

    with pytest.raises(ValueError, match="offset_mask"):
        func.jvp(run, (value,), (value,))
    with pytest.raises(ValueError, match="offset_mask"):
        func.vmap(run)(value[None])
    with pytest.raises(ValueError, match="offset_mask"), torch.autocast("cpu", torch.bfloat16):
        run(value)
    with pytest.raises(ValueError, match="one device"):
        run(value.to("meta"))


def border_problem(name):
    """Points on borders and between pixels, some of them not finite; a mask that is, outside."""
    if name == "dcnv4":
        problem = dcnv4_problems.make_problem(whole_offsets=True, width=3)
        rows = problem.offset_mask.view(-1, problem.offset_mask.shape[-1])
        rows[3, 0], rows[4, 1], rows[5, 2] = math.nan, math.inf, -1e30
        rows[6, 0], rows[6, 18] = 1e4, math.inf
        return dcnv4_raw, problem.grad_output, problem[1:]
    if name == "bev_cross_attn":
        problem = bev_cross_attn_problems.make_problem(width=3)
        problem = problem._replace(
            reference_points=(8 * problem.reference_points).round() / 8,
            offsets_logits=(2 * problem.offsets_logits).round() / 2,
        )
        problem.reference_points[0, 0, 0, 0, 0], problem.reference_points[0, 1, 2] = (
            math.nan,
            math.inf,
        )
        return bev_cross_attn_raw, problem.grad_output, problem.inputs()
    packed = name == "flash_deform_attn"
    problem = flash_deform_attn_problems.make_problem(packed=packed, width=3)
    locations = (24 * problem.locations).round() / 24
    locations[0, 0, 0, 0, :3, 0] = torch.tensor([math.nan, math.inf, 1e30])
    if not packed:
        problem.weights[0, 0, 0, 0, 2] = math.inf
    problem = problem._replace(locations=locations)
    return RAW_OPERATORS[name, "default"], problem.grad_output, problem.inputs()


@pytest.mark.parametrize("name", CASES)
def test_formula_has_the_gradients_of_the_operator(name):
    operator, grad_output, arguments = border_problem(name)
    flags = (False, True, True)
    expected = operator.backward(grad_output, *arguments, *flags)
    actual = operator.gradients(grad_output, *arguments, *flags)
    assert all(gradient.isfinite().all() for gradient in expected)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
