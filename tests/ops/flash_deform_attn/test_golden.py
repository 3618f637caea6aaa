"""The operator against numbers recorded from the original project's formula."""

import pytest
import torch
from ops.flash_deform_attn.problems import GOLDEN_CASES, check_golden, golden_inputs

from dcnv4_mm.ops.flash_deform_attn.layout import read_spatial_shapes, unpack
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_backward_reference,
    flash_deform_attn_forward_reference,
)
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn


def public_function(value, locations_logits, grad_output, case):
    """What a user gets: the compiled kernels where they are built."""
    leaves = value.requires_grad_(), locations_logits.requires_grad_()
    output = flash_deform_attn(value, case["shapes"], locations_logits, num_points=case["P"])
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def finished_weights(value, locations_logits, grad_output, case):
    """The function that takes weights, after torch's own softmax."""
    leaves = value.requires_grad_(), locations_logits.requires_grad_()
    locations, logits = unpack(locations_logits, len(case["shapes"]), case["P"])
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    output = ms_deform_attn(value, case["shapes"], locations, weights)
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def reference(value, locations_logits, grad_output, case):
    geometry = read_spatial_shapes(case["shapes"]), case["P"]
    tensors = value, locations_logits
    return (
        flash_deform_attn_forward_reference(*tensors, *geometry),
        *flash_deform_attn_backward_reference(grad_output, *tensors, *geometry),
    )


IMPLEMENTATIONS = [public_function, finished_weights, reference]


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_inputs_are_those_of_the_recording(name):
    value, locations_logits, _ = golden_inputs(GOLDEN_CASES[name])
    check = GOLDEN_CASES[name]["check"]
    assert value.sum().item() == pytest.approx(check["value_sum"], rel=1e-12)
    expected = check["sampling_loc_attn_sum"]
    assert locations_logits.sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_recorded_results(name, dtype, implementation):
    case = GOLDEN_CASES[name]
    tensors = [tensor.to(dtype) for tensor in golden_inputs(case)]
    check_golden(case, implementation(*tensors, case), dtype)
