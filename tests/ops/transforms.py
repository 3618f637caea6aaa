"""Transforms of torch, and functions to transform: the public operators and their formulas."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import func
from torch.autograd import forward_ad

from dcnv4_mm.ops.bev_cross_attn.reference import bev_cross_attn_forward_reference
from dcnv4_mm.ops.dcnv4.reference import dcnv4_forward_reference
from dcnv4_mm.ops.flash_deform_attn.layout import num_pixels
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_forward_reference,
    ms_deform_attn_forward_reference,
)
from dcnv4_mm.ops.functional import bev_cross_attn, dcnv4, flash_deform_attn, ms_deform_attn


def normal(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


class Case(NamedTuple):
    """A public function of differentiable tensors, and the same in plain PyTorch."""

    ours: Callable[..., torch.Tensor]
    plain: Callable[..., torch.Tensor]
    tensors: Sequence[torch.Tensor]  # the first axis is the batch


# Those with one point are for compilers, which take seconds for every point of the plain formula.


def dcnv4_case(device, one_point):
    side = 1 if one_point else 2
    rows = normal(2, 3 - side, 4 - side, 6 * side**2 + 1, device=device, seed=1)
    return Case(
        lambda *tensors: dcnv4(*tensors, groups=2, kernel_size=side, padding=0),
        lambda *tensors: dcnv4_forward_reference(
            *tensors, [side] * 2, [1, 1], [0, 0], [1, 1], 2, 1.0, False
        ),
        [normal(2, 2, 3, 4, device=device), rows],
    )


def levels_of(one_point):
    """Sizes of levels, as pairs and as numbers, and points of each."""
    return ([(2, 3)], [2, 3], 1) if one_point else ([(2, 3), (2, 1)], [2, 3, 2, 1], 2)


def ms_case(device, one_point):
    pairs, numbers, points = levels_of(one_point)
    shape = (2, 2, 2, len(pairs), points)
    return Case(
        lambda *tensors: ms_deform_attn(tensors[0], pairs, *tensors[1:]),
        lambda *tensors: ms_deform_attn_forward_reference(*tensors, numbers),
        [
            normal(2, num_pixels(numbers), 2, 3, device=device),
            0.5 + 0.4 * normal(*shape, 2, device=device, seed=1),
            normal(*shape, device=device, seed=2),
        ],
    )


def flash_case(device, one_point):
    pairs, numbers, points = levels_of(one_point)
    return Case(
        lambda *tensors: flash_deform_attn(tensors[0], pairs, tensors[1], num_points=points),
        lambda *tensors: flash_deform_attn_forward_reference(*tensors, numbers, points),
        [
            normal(2, num_pixels(numbers), 2, 3, device=device),
            0.5 + 0.4 * normal(2, 2, 2, 3 * len(pairs) * points, device=device, seed=1),
        ],
    )


def bev_case(device, one_point):
    pairs, numbers, points = levels_of(one_point)
    cameras = points
    reference_points = 0.5 + 0.3 * normal(2, cameras, 2, points, 2, device=device, seed=3)
    bev_mask = torch.tensor([[[True, True], [True, False]], [[False, True], [True, True]]])
    bev_mask = bev_mask[:, :cameras].to(device)

    def beside(value):
        # One entry of the batch has the reference points of one; their type goes with value.
        dtype = torch.promote_types(value.dtype, torch.float32)
        return reference_points[: value.shape[0]].to(dtype), bev_mask[: value.shape[0]]

    return Case(
        lambda value, rows: bev_cross_attn(value, pairs, rows, *beside(value), num_points=points),
        lambda value, rows: bev_cross_attn_forward_reference(
            value, rows, *beside(value), numbers, points
        ),
        [
            normal(2, cameras, num_pixels(numbers), 2, 3, device=device),
            normal(2, 2, 2, 3 * len(pairs) * points, device=device, seed=1),
        ],
    )


CASES = {
    "dcnv4": dcnv4_case,
    "ms_deform_attn": ms_case,
    "flash_deform_attn": flash_case,
    "bev_cross_attn": bev_case,
}


def loss_of(function):
    return lambda *tensors: function(*tensors).pow(3).sum()


def all_tensors(case):
    return tuple(range(len(case.tensors)))


def per_sample(function):
    """The function of one entry of the batch, without its axis."""
    return lambda *tensors: function(*(tensor.unsqueeze(0) for tensor in tensors))[0]


def grad(function, case):
    return func.grad(loss_of(function), all_tensors(case))(*case.tensors)


def value_and_grad(function, case):
    return func.grad_and_value(loss_of(function))(*case.tensors)


def per_sample_gradients(function, case):
    one = func.grad(loss_of(per_sample(function)), all_tensors(case))
    return func.vmap(one)(*case.tensors)


def per_sample_gradients_in_chunks(function, case):
    one = func.grad(loss_of(per_sample(function)), all_tensors(case))
    return func.vmap(one, chunk_size=1)(*case.tensors)


def ensemble(function, case):
    """Two values by the same points, along an axis that is not the first."""
    first, *others = (tensor.clone().requires_grad_() for tensor in case.tensors)
    both = torch.stack([first, first.flip(-1)], dim=-1)
    outputs = func.vmap(function, in_dims=(-1, *[None] * len(others)), out_dims=1)(both, *others)
    return outputs, torch.autograd.grad(outputs.pow(3).sum(), (first, *others))


def ensemble_of_points(function, case):
    first, *others = (tensor.clone().requires_grad_() for tensor in case.tensors)
    both = [torch.stack([tensor, tensor * 0.9]) for tensor in others]
    outputs = func.vmap(function, in_dims=(None, *[0] * len(others)))(first, *both)
    return outputs, torch.autograd.grad(outputs.pow(3).sum(), (first, *others))


def nested_vmap(function, case):
    first, *others = case.tensors
    values = torch.stack([first, first + 1])
    inner = func.vmap(per_sample(function))
    return func.vmap(inner, in_dims=(0, *[None] * len(others)))(values, *others)


def jacrev(function, case):
    return func.jacrev(function, all_tensors(case))(*case.tensors)


def jacfwd(function, case):
    return func.jacfwd(function, all_tensors(case))(*case.tensors)


def hessian(function, case):
    return func.hessian(loss_of(per_sample(function)), all_tensors(case))(
        *(tensor[1] for tensor in case.tensors)
    )


def reverse_over_reverse(function, case):
    inner = func.grad(loss_of(function), all_tensors(case))
    return func.grad(
        lambda *tensors: sum(g.pow(2).sum() for g in inner(*tensors)), all_tensors(case)
    )(*case.tensors)


def jvp(function, case):
    return func.jvp(function, tuple(case.tensors), tuple(map(torch.sin, case.tensors)))


def linearize(function, case):
    output, push_forward = func.linearize(function, *case.tensors)
    return output, push_forward(*map(torch.sin, case.tensors))


def jvp_of_jvp(function, case):
    tangents = tuple(map(torch.sin, case.tensors))
    return func.jvp(
        lambda *tensors: func.jvp(function, tensors, tangents)[1], tuple(case.tensors), tangents
    )


def hvp_forward_over_reverse(function, case):
    inner = func.grad(loss_of(function), all_tensors(case))
    return func.jvp(inner, tuple(case.tensors), tuple(map(torch.sin, case.tensors)))


def reverse_over_forward(function, case):
    tangents = tuple(map(torch.sin, case.tensors))
    return func.grad(
        lambda *tensors: func.jvp(function, tensors, tangents)[1].pow(2).sum(), all_tensors(case)
    )(*case.tensors)


def vmap_of_jvp(function, case):
    tangents = [torch.stack([tensor.sin(), tensor.cos()]) for tensor in case.tensors]
    return func.vmap(lambda *t: func.jvp(function, tuple(case.tensors), t)[1])(*tangents)


def dual_numbers(function, case, which=(True, True, True)):
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(tensor, tensor.sin()) if dual else tensor
            for tensor, dual in zip(case.tensors, which, strict=False)
        ]
        return tuple(forward_ad.unpack_dual(function(*duals)))


def dual_value(function, case):
    return dual_numbers(function, case, (True, False, False))


def dual_numbers_that_require_grad(function, case):
    """Tangents of the value alone: torch's own softmax cannot be differentiated in both modes."""
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[0], tensors[0].detach().sin())
        tangent = forward_ad.unpack_dual(function(dual, *tensors[1:])).tangent
    return tangent, torch.autograd.grad(tangent.pow(2).sum(), tensors)


def dual_gradient_of_the_output(function, case):
    """The graph is older than the dual number."""
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    output = function(*tensors)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(output.detach().sin(), output.detach().cos())
        gradients = torch.autograd.grad(output, tensors, dual)
        return [tuple(forward_ad.unpack_dual(gradient)) for gradient in gradients]


def functional_jvp(function, case):
    tensors = tuple(case.tensors)
    return torch.autograd.functional.jvp(function, tensors, tuple(map(torch.sin, tensors)))


def functional_jacobian_forward(function, case):
    return torch.autograd.functional.jacobian(
        function, tuple(case.tensors), strategy="forward-mode", vectorize=True
    )


def functional_hvp(function, case):
    tensors = tuple(case.tensors)
    return torch.autograd.functional.hvp(loss_of(function), tensors, tuple(map(torch.sin, tensors)))


def functional_hessian(function, case):
    return torch.autograd.functional.hessian(
        lambda first: loss_of(function)(first, *case.tensors[1:]),
        case.tensors[0],
        vectorize=True,
        outer_jacobian_strategy="forward-mode",
    )


def batched_gradients(function, case):
    """What ``jacobian(vectorize=True)`` does: vmap over the backward of an ordinary graph."""
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    output = function(*tensors)
    batch = torch.stack([output.detach().sin(), output.detach().cos()])
    return torch.autograd.grad(output, tensors, batch, is_grads_batched=True)


def batched_gradients_with_a_graph(function, case):
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    output = function(*tensors)
    batch = torch.stack([output.detach().sin(), output.detach().cos()])
    gradients = torch.autograd.grad(
        output, tensors, batch, is_grads_batched=True, create_graph=True
    )
    return torch.autograd.grad(sum(gradient.pow(2).sum() for gradient in gradients), tensors)


def gradient_penalty(function, case):
    """The gradient of a sum: its own gradient of the output needs no gradient."""
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    output = function(*tensors).sum()
    gradients = torch.autograd.grad(output, tensors[:1], create_graph=True)
    (output + sum(gradient.pow(2).sum() for gradient in gradients)).backward()
    return [tensor.grad for tensor in tensors]


def r1_penalty(function, case):
    """The value is data, the points are predicted from it by a weight."""
    first, *others = (tensor.clone() for tensor in case.tensors)
    first.requires_grad_()
    weight = torch.ones((), dtype=first.dtype, device=first.device, requires_grad=True)
    output = function(first, *(tensor * weight for tensor in others))
    gradient = torch.autograd.grad(output.sum(), first, create_graph=True)[0]
    return torch.autograd.grad(
        gradient.pow(2).sum(), (weight, first), allow_unused=True, materialize_grads=True
    )


def maml(function, case):
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    loss = loss_of(function)
    gradients = torch.autograd.grad(loss(*tensors), tensors, create_graph=True, allow_unused=True)
    adapted = [t - 0.1 * g for t, g in zip(tensors, gradients, strict=True)]
    return torch.autograd.grad(loss(*adapted), tensors, allow_unused=True)


def third_derivative(function, case):
    first, *others = case.tensors
    first = first.clone().requires_grad_()
    others = [tensor.clone().requires_grad_() for tensor in others]
    result = loss_of(function)(first, *others)
    for _ in range(3):
        gradients = torch.autograd.grad(result, (first, *others), create_graph=True)
        result = sum(gradient.pow(2).sum() for gradient in gradients)
    return [gradient.detach() for gradient in gradients]


TRANSFORMS = [
    grad,
    value_and_grad,
    per_sample_gradients,
    per_sample_gradients_in_chunks,
    ensemble,
    ensemble_of_points,
    nested_vmap,
    jacrev,
    jacfwd,
    hessian,
    reverse_over_reverse,
    jvp,
    linearize,
    jvp_of_jvp,
    hvp_forward_over_reverse,
    reverse_over_forward,
    vmap_of_jvp,
    dual_numbers,
    dual_value,
    dual_numbers_that_require_grad,
    dual_gradient_of_the_output,
    batched_gradients,
    batched_gradients_with_a_graph,
    functional_jvp,
    functional_jacobian_forward,
    functional_hvp,
    functional_hessian,
    gradient_penalty,
    r1_penalty,
    maml,
    third_derivative,
]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    leaves = torch.utils._pytree.tree_leaves(expected)
    assert any(leaf.abs().max() > 1e-3 for leaf in leaves), "a test of zeros tests nothing"
