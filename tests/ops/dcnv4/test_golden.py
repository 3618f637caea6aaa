"""The operator against numbers recorded from the original project's formula."""

import pytest
import torch
from ops.dcnv4.problems import GOLDEN_CASES, check_golden, golden_geometry, golden_inputs

from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference
from dcnv4_mm.ops.functional import dcnv4


def public_function(value, offset_mask, grad_output, arguments):
    """What a user gets: the compiled kernels where they are built."""
    value.requires_grad_()
    offset_mask.requires_grad_()
    output = dcnv4(value, offset_mask, **arguments)
    return output.detach(), *torch.autograd.grad(output, (value, offset_mask), grad_output)


def reference(value, offset_mask, grad_output, arguments):
    output = dcnv4_forward_reference(value, offset_mask, **arguments)
    return output, *dcnv4_backward_reference(grad_output, value, offset_mask, **arguments)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_inputs_are_those_of_the_recording(name):
    value, offset_mask, _ = golden_inputs(GOLDEN_CASES[name])
    check = GOLDEN_CASES[name]["check"]
    assert value.sum().item() == pytest.approx(check["input_sum"], rel=1e-12)
    assert offset_mask.flatten()[:4].tolist() == check["offset_mask_first"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("implementation", [public_function, reference])
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_recorded_results(name, implementation, dtype):
    case = GOLDEN_CASES[name]
    tensors = [tensor.to(dtype) for tensor in golden_inputs(case)]
    check_golden(case, implementation(*tensors, golden_geometry(case)))
