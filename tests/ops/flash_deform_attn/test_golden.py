"""The operator against numbers recorded from the original project's formula."""

import numpy as np
import pytest
import torch
from helpers import generator, load_arrays, load_json, normal

from dcnv4_mm.ops.flash_deform_attn.layout import pack, read_spatial_shapes, unpack
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_backward_reference,
    flash_deform_attn_forward_reference,
)
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

CASES = {case["name"]: case for case in load_json("flash_deform_attn_cases")}
RESULTS = ("output", "grad_value", "grad_sampling_loc_attn")


def inputs(case):
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


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_the_recording(name):
    value, locations_logits, _ = inputs(CASES[name])
    check = CASES[name]["check"]
    assert value.sum().item() == pytest.approx(check["value_sum"], rel=1e-12)
    expected = check["sampling_loc_attn_sum"]
    assert locations_logits.sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_float64(name, implementation):
    results = implementation(*inputs(CASES[name]), CASES[name])
    for key, result in zip(RESULTS, results, strict=True):
        expected = torch.from_numpy(load_arrays("flash_deform_attn_cases")[f"{name}/{key}"])
        largest = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12 * largest, msg=key)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_float32(name, implementation):
    """At most twice the error that the original formula has in float32, plus a floor."""
    case = CASES[name]
    tensors = [tensor.float() for tensor in inputs(case)]
    results = implementation(*tensors, case)
    budgets = zip(RESULTS, results, case["float32_max_abs_error"], case["max_abs"], strict=True)
    for key, result, error, largest in budgets:
        expected = torch.from_numpy(load_arrays("flash_deform_attn_cases")[f"{name}/{key}"])
        atol = 2 * error + 1e-6 * largest
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol, msg=key)
