"""The operator against numbers recorded from the original project's formula."""

import numpy as np
import pytest
import torch
from helpers import load_arrays, load_json, normal

from dcnv4_mm.ops.dcnv4.layout import offset_rows
from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference
from dcnv4_mm.ops.functional import dcnv4

CASES = {case["name"]: case for case in load_json("dcnv4_cases")}
RESULTS = ("output", "grad_input", "grad_offset_mask")


def inputs(case):
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


def geometry(case):
    return {
        "kernel_size": (case["kh"], case["kw"]),
        "stride": (case["sh"], case["sw"]),
        "padding": (case["ph"], case["pw"]),
        "dilation": (case["dh"], case["dw"]),
        "groups": case["G"],
        "offset_scale": case["osc"],
        "remove_center": bool(case["rc"]),
    }


def public_function(value, offset_mask, grad_output, arguments):
    """What a user gets: the compiled kernels where they are built."""
    value.requires_grad_()
    offset_mask.requires_grad_()
    output = dcnv4(value, offset_mask, **arguments)
    return output.detach(), *torch.autograd.grad(output, (value, offset_mask), grad_output)


def reference(value, offset_mask, grad_output, arguments):
    output = dcnv4_forward_reference(value, offset_mask, **arguments)
    return output, *dcnv4_backward_reference(grad_output, value, offset_mask, **arguments)


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_the_recording(name):
    value, offset_mask, _ = inputs(CASES[name])
    check = CASES[name]["check"]
    assert value.sum().item() == pytest.approx(check["input_sum"], rel=1e-12)
    assert offset_mask.flatten()[:4].tolist() == check["offset_mask_first"]


@pytest.mark.parametrize("implementation", [public_function, reference])
@pytest.mark.parametrize("name", CASES)
def test_float64(name, implementation):
    results = implementation(*inputs(CASES[name]), geometry(CASES[name]))
    for key, result in zip(RESULTS, results, strict=True):
        expected = torch.from_numpy(load_arrays("dcnv4_cases")[f"{name}/{key}"])
        largest = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12 * largest, msg=key)


@pytest.mark.parametrize("implementation", [public_function, reference])
@pytest.mark.parametrize("name", CASES)
def test_float32(name, implementation):
    """At most twice the error that the original formula has in float32, plus a floor."""
    case = CASES[name]
    tensors = [tensor.float() for tensor in inputs(case)]
    results = implementation(*tensors, geometry(case))
    budgets = zip(RESULTS, results, case["float32_max_abs_error"], case["max_abs"], strict=True)
    for key, result, error, largest in budgets:
        expected = torch.from_numpy(load_arrays("dcnv4_cases")[f"{name}/{key}"])
        atol = 2 * error + 1e-6 * largest
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol, msg=key)
